"""Multiply by the entries of a constant that are not zero.

    mm(x, U)       U: [816, 768], a buffer of coupling coefficients, 0.5 % of which is not zero
=>  sparse_mm(x, rows of U, columns, values)

Equivariant models contract features with tables of coupling coefficients, which selection rules leave nearly empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...ir import Normal, is_random, replace_graph
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
    constants = _Constants(module)
    read: dict[int, tuple[Tensor, int]] = {}
    for node in list(module.graph.nodes):
        if node.target is aten.mm.default and (table := _rewrite(module, node, constants)) is not None:
            read |= {id(buffer): (buffer, buffer._version) for buffer in constants.buffers(table)}
    module.graph.eliminate_dead_code()
    return replace_graph(program, module, compiled_in=(*program.compiled_in, *read.values()))


class _Constants:
    """Values of nodes that depend on buffers only."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._known: dict[fx.Node, Any] = {}
        self._made_of: dict[fx.Node, frozenset[fx.Node]] = {}
        """The buffers that a constant depends on."""
        for node in module.graph.nodes:
            if node.op == "get_attr":
                if _is_buffer(value := _attribute(module, str(node.target))):
                    self._known[node] = value.detach()
                    self._made_of[node] = frozenset([node])
            elif node.op == "call_function" and not is_random(node):
                made_of = [self._made_of.get(n) for n in node.all_input_nodes]
                if made_of and None not in made_of:
                    self._made_of[node] = frozenset().union(*made_of)  # type: ignore[arg-type]

    def buffers(self, node: fx.Node) -> list[Tensor]:
        """The buffers that a constant depends on."""
        return [_attribute(self._module, str(n.target)) for n in self._made_of[node]]

    def value(self, node: fx.Node) -> Tensor | None:
        """The value of a constant; None for other nodes."""
        if node not in self._made_of:
            return None
        if node not in self._known:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(n))
            with torch.no_grad():
                self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found = self._known[node]
        return found if isinstance(found, Tensor) else None


def _is_buffer(value: Any) -> bool:
    """True if an attribute is a tensor whose values the model keeps, and whose version tells if they were changed."""
    kept = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad
    return kept and value.device.type == "cpu" and not value.is_inference()


def _rewrite(module: fx.GraphModule, node: fx.Node, constants: _Constants) -> fx.Node | None:
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


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found
