"""Operators that pass a partial value on: f(a) + f(b) = f(a + b).

Everything else needs the whole value first, so that the place pass asks for an all_reduce in front of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ..ir.operators import facts, is_zero

aten = torch.ops.aten


def passes_partial(node: fx.Node, partial: set[fx.Node], sharded: set[fx.Node]) -> bool:
    """True if `node` may take the operands in `partial` as they are and gives a partial result."""
    if any(n in sharded for n in _tensors(node)):
        return False  # a partial value that meets rows would have to be added up once per row
    return is_linear(node, partial)


def is_linear(node: fx.Node, partial: set[fx.Node]) -> bool:
    """True if `node` is linear in its operands that are in `partial`, taken together."""
    row = facts(node).linear
    if row is None or (row.in_reals and not node.meta["val"].dtype.is_floating_point):
        return False
    given = _flat(node.args[i] for i in row.operands)
    fixed = _flat(a for i, a in enumerate(node.args) if i not in row.operands)
    if any(isinstance(n, fx.Node) and n in partial for n in fixed):
        return False
    if row.together:
        return all(n in partial or (row.or_zero and _is_nothing(n)) for n in given)
    return sum(n in partial for n in given) == 1


def _flat(operands: Iterable[Any]) -> list[Any]:
    """The operands, with lists of them unpacked."""
    return [n for o in operands for n in (o if isinstance(o, list | tuple) else [o])]


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor | list | tuple)]


def _is_nothing(node: fx.Node) -> bool:
    """True if a node is zero, or zeros, by construction."""
    return is_zero(node) or bool(node.target is aten.scalar_tensor.default and node.args[0] == 0)
