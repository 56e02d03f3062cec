"""Multiply by the entries of a constant that are not zero.

    mm(x, U)       U: [816, 768], a buffer of coupling coefficients, 0.5 % of which is not zero
=>  sparse_mm(x, rows of U, columns, values)

Equivariant models contract features with tables of coupling coefficients, which selection rules leave nearly empty.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ...ir import Normal, replace_graph
from ...ir.constants import Constants
from ...ir.graphs import copy_graph
from ...ir.writer import described, write
from ...runtime.operators.sparse import sparse_mm

aten = torch.ops.aten

DENSITY = 0.02
"""Share of entries up to which the sparse product is the faster one."""
WORTHWHILE = 2**14
"""Entries of a table below which a product is too small for it to matter."""
DTYPES = (torch.float32, torch.float64)
"""The types in which MKL multiplies sparse matrices."""


def sparse_constants(program: Normal) -> Normal:
    """Return `program` with products by nearly empty buffers as sparse products."""
    if not torch.backends.mkl.is_available():  # it multiplies sparse matrices
        return program
    module, _ = copy_graph(program.graph)
    constants = Constants(module)
    read: dict[int, tuple[Tensor, int]] = {}
    for node in list(module.graph.nodes):
        if node.target is aten.mm.default and (table := _rewrite(module, node, constants)) is not None:
            read |= {id(buffer): (buffer, buffer._version) for buffer in constants.buffers(table)}
    module.graph.eliminate_dead_code()
    return replace_graph(program, module, compiled_in=(*program.compiled_in, *read.values()))


def _rewrite(module: fx.GraphModule, node: fx.Node, constants: Constants) -> fx.Node | None:
    """Put a sparse product in the place of `node`, if its second factor is nearly empty; return that factor."""
    left, right = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, None)
    if left is None or right is None or node.args != (left, right) or constants.value(left) is not None:
        return None
    shape = right.meta["val"].shape
    if not all(isinstance(n, int) for n in shape) or shape[0] * shape[1] < WORTHWHILE:
        return None
    table = constants.value(right)
    if table is None or table.dtype not in DTYPES or table.count_nonzero() > DENSITY * table.numel():
        return None
    sparse = table.to_sparse_csr()
    given = []
    with module.graph.inserting_before(node):
        for part, value in (
            ("rows", sparse.crow_indices()),
            ("columns", sparse.col_indices()),
            ("values", sparse.values()),
        ):
            name = f"{node.name}_{part}"
            module.register_buffer(name, value)
            entries = node.meta["val"].new_empty(value.shape, dtype=value.dtype)
            given.append(described(module.graph.get_attr(name), value=entries))
        product = write(module.graph, sparse_mm, (left, *given, int(shape[1])), like=node)
    node.replace_all_uses_with(product)
    return right
