"""Elementwise operators: every result element depends on operand elements at the same place.

[atoms, 64] * [64]        -> [atoms, 64]
[atoms, 1]  + [atoms, 64] -> [atoms, 64]
"""

from __future__ import annotations

import torch
from torch import fx

from ..ir import Dim, Placement, Space
from .base import Context, Refused, argument, arguments, one_row_dimension, rank, rule

aten = torch.ops.aten


def pointwise(ctx: Context, node: fx.Node) -> Placement:
    """Broadcast the operands' dimensions against each other, from the last one on."""
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return Placement(broadcast(ctx, operands, rank(node)))


def broadcast(ctx: Context, operands: list[fx.Node], ndim: int) -> tuple[Dim, ...]:
    """Dimensions of the broadcast of `operands` to `ndim` dimensions."""
    dims: list[Dim] = [()] * ndim
    for operand in operands:
        offset = ndim - rank(operand)
        for i, dim in enumerate(ctx.dims(operand)):
            if not dim or dim == dims[offset + i]:
                continue
            if dims[offset + i]:
                raise Refused(
                    f"rows of {_show(dims[offset + i])} meet rows of {_show(dim)}{_order(dims[offset + i], dim)}"
                )
            dims[offset + i] = dim
    for operand in operands:
        for i, dim in enumerate(ctx.dims(operand), ndim - rank(operand)):
            if dims[i] and not dim and ctx.shape(operand)[i - ndim] != 1:
                raise Refused(f"rows of {_show(dims[i])} meet all rows")
    return one_row_dimension(dims)


def _order(one: Dim, two: Dim) -> str:
    """A hint on rows that come twice (edges*2) beside two lists of them (2*edges, edges_edges); else empty."""
    spaces = [{f for part in dim if isinstance(part, Space) for f in (part.blocks or (part,))} for dim in (one, two)]
    if spaces[0] != spaces[1]:
        return ""
    return ", which come in another order: join lists of all rows with torch.cat, and do not repeat row by row"


def _show(dim: Dim) -> str:
    return "*".join(str(f) for f in dim)


@rule(aten.linalg_cross.default, aten.linalg_cross)
def cross(ctx: Context, node: fx.Node) -> Placement:
    """A cross product is elementwise but along its dimension, which must be whole."""
    dim = argument(node, 2, "dim", -1)
    result = pointwise(ctx, node)
    if result.dims[dim % len(result.dims)]:
        raise Refused("a cross product along rows")
    return result


@rule(aten.bucketize.Tensor, aten.searchsorted.Tensor)
def place_among(ctx: Context, node: fx.Node) -> Placement:
    """The place of each element in a list that is the same for all rows."""
    given, bounds = arguments(node)[:2] if node.target is aten.bucketize.Tensor else arguments(node)[1::-1]
    if any(ctx.dims(bounds)) or rank(bounds) != 1:
        raise Refused("a search in a list that rows make up")
    return Placement(ctx.dims(given))


@rule(
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.rand.default,
    aten.randn.default,
    aten.scalar_tensor.default,
    aten.eye.default,
    aten.eye.m,
    aten.new_empty_strided.default,
)
def create(ctx: Context, node: fx.Node) -> Placement:
    """A new tensor has the dimensions that its sizes say; the first operand of new_* gives its dtype only."""
    dims = one_row_dimension([ctx.dim_of(n) for n in node.meta["val"].shape])
    if node.target in (aten.eye.default, aten.eye.m) and any(dims):
        raise Refused("an identity matrix over rows")
    return Placement(dims)
