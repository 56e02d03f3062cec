"""Rows of several kinds, one after another, in one dimension: lists that the model joins, and cuts again.

    cat     [edges, 8], [edges, 8]  -> [2*edges, 8]           [edges, 8], [atoms, 8] -> [edges_atoms, 8]
    slice   [edges_atoms, 8], first n_edges rows -> [edges, 8]

A rank's rows of such a dimension are its rows of the first block, then those of the second: sizes and positions that
the captured graph computes from sizes of blocks hold on every rank.
"""

from __future__ import annotations

import sympy

from ..ir import Dim, Factor, Space
from ..ir.lengths import Joined
from .base import Context


def blocks_of(dim: Dim) -> tuple[Space, ...] | None:
    """The kinds of rows that a dimension holds one after another; None if it is not made of whole blocks of rows."""
    if not dim or not isinstance(dim[-1], Space) or not dim[-1].sharded:
        return None
    times = 1
    for factor in dim[:-1]:
        if not isinstance(factor, int):
            return None
        times *= factor
    return (dim[-1].blocks or (dim[-1],)) * times


def joined(ctx: Context, blocks: tuple[Space, ...]) -> Dim | None:
    """The dimension that holds these blocks; None if no space is made of them."""
    if len(blocks) == 1:
        return blocks
    space = next((s for s in ctx.program.spaces if s.blocks == blocks), None)
    if space is not None:
        return (space,)
    return (len(blocks), blocks[0]) if len(set(blocks)) == 1 else None


def named(ctx: Context, dim: Dim) -> Dim:
    """A dimension under one name: two dimensions with the same blocks are equal."""
    blocks = blocks_of(dim)
    return dim if blocks is None else joined(ctx, blocks) or dim


def factors(dim: Dim) -> tuple[Factor, ...]:
    """A dimension as a product; blocks of one kind are counted."""
    blocks = blocks_of(dim)
    return (len(blocks), blocks[0]) if blocks is not None and len(set(blocks)) == 1 else dim


def part(ctx: Context, dim: Dim, start: sympy.Expr, size: sympy.Expr) -> Dim | None:
    """The dimension that `size` rows from `start` on make; None if they are not whole blocks."""
    blocks = blocks_of(dim) or ()
    found = Joined(tuple(block.symbol for block in blocks)).part(start, size)
    return joined(ctx, blocks[found]) if found is not None else None
