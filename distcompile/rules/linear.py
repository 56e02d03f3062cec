"""Which operators pass a partial value on: f(a) + f(b) = f(a + b).

Everything else needs the whole value first, so that the place pass asks for an all_reduce in front of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..runtime.operators.halo import stop_gradient
from .indexing import is_zero
from .shape import VIEWS

aten = torch.ops.aten

_UNARY = VIEWS | {
    stop_gradient,
    aten.neg.default,
    aten.reshape.default,
    aten.diagonal_backward.default,
    aten.select_backward.default,
    aten.slice_backward.default,
    aten.sum.default,
    aten.sum.dim_IntList,
}
_ALL = {aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.stack.default}
_ONE = {
    aten.mul.Tensor,
    aten.mm.default,
    aten.bmm.default,
    aten.mul.Scalar,
    aten.mv.default,
    aten.dot.default,
}
_FIRST = {aten.div.Tensor, aten.div.Scalar}


def passes_partial(node: fx.Node, partial: set[fx.Node], sharded: set[fx.Node]) -> bool:
    """Whether `node` may take the operands in `partial` as they are and gives a partial result."""
    if any(n in sharded for n in _tensors(node)):
        return False  # a partial value that meets rows would have to be added up once per row
    return is_linear(node, partial)


def is_linear(node: fx.Node, partial: set[fx.Node]) -> bool:
    """Whether `node` is linear in those of its operands that are in `partial`, taken together."""
    if node.target is aten._to_copy.default:
        return bool(node.meta["val"].dtype.is_floating_point)
    if node.target in _UNARY:
        return True
    if node.target in _ALL:
        return all(n in partial for n in _tensors(node)) and not any(_number(a) for a in node.args[:2])
    if node.target in _ONE:
        return sum(a in partial for a in node.args[:2] if isinstance(a, fx.Node)) == 1
    if node.target is aten.where.self:
        return node.args[0] not in partial and all(n in partial or _is_nothing(n) for n in node.args[1:])
    if node.target in _FIRST:
        return node.args[0] in partial and node.args[1] not in partial
    return False


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor | list | tuple)]


def _is_nothing(node: Any) -> bool:
    """Whether a node is zero, or zeros, by construction."""
    return is_zero(node) or (node.target is aten.scalar_tensor.default and node.args[0] == 0)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
