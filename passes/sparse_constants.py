"""Pass 4: multiply by the entries of a constant that are not zero.

    mm(x, U)       U: [816, 768], a buffer of coupling coefficients, 0.5 % of which is not zero
=>  sparse_mm(x, rows of U, columns, values)

Equivariant models contract features with tables of coupling coefficients, which selection rules leave nearly empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..ir import Program, copy_graph, replace_graph
from ..runtime.sparse import sparse_mm

aten = torch.ops.aten

DENSITY = 0.02
"""Share of entries up to which the sparse product is the faster one."""
WORTHWHILE = 2**14
"""Entries of a table below which a product is too small for it to matter."""


def sparse_constants(program: Program) -> Program:
    """Return `program` with products by nearly empty buffers as sparse products."""
    if not torch.backends.mkl.is_available():  # who multiplies sparse matrices
        return program
    module, _ = copy_graph(program.graph)
    constants = _Constants(module)
    for node in list(module.graph.nodes):
        if node.target is aten.mm.default:
            _rewrite(module, node, constants)
    module.graph.eliminate_dead_code()
    return replace_graph(program, module)


class _Constants:
    """Values of nodes that depend on buffers only."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._known: dict[fx.Node, Any] = {}
        self._constant: set[fx.Node] = set()
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = _attribute(module, str(node.target))
                if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.device.type == "cpu":
                    self._known[node] = value.detach()
                    self._constant.add(node)
            elif self._is_constant(node):
                self._constant.add(node)

    def _is_constant(self, node: fx.Node) -> bool:
        operands = node.all_input_nodes
        computed = node.op == "call_function" and bool(operands) and not _is_random(node)
        return computed and self._constant.issuperset(operands)

    def value(self, node: fx.Node) -> Tensor | None:
        """The value of a constant; None of what is none."""
        if node not in self._constant:
            return None
        if node not in self._known:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(n))
            with torch.no_grad():
                self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found = self._known[node]
        return found if isinstance(found, Tensor) else None


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _rewrite(module: fx.GraphModule, node: fx.Node, constants: _Constants) -> None:
    left, right = node.all_input_nodes if len(node.all_input_nodes) == 2 else (None, None)
    if left is None or right is None or node.args != (left, right) or constants.value(left) is not None:
        return
    shape = right.meta["val"].shape
    if not all(isinstance(n, int) for n in shape) or shape[0] * shape[1] < WORTHWHILE:
        return
    table = constants.value(right)
    if table is None or not table.is_floating_point() or table.count_nonzero() > DENSITY * table.numel():
        return
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
            attribute = module.graph.get_attr(name)
            attribute.meta["val"] = node.meta["val"].new_empty(value.shape, dtype=value.dtype)
            given.append(attribute)
        product = module.graph.call_function(sparse_mm, (left, *given, int(shape[1])))
    product.meta = dict(node.meta)
    node.replace_all_uses_with(product)


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found
