"""One row of all, named by its number, found by comparing row numbers.

    s[i]                            =>  sum(where(arange(n) == i, s, 0), 0)       also x[i], x[i:i+1], x[-1]
    s[-1:] = e                      =>  where(arange(n) == n - 1, e, s)
    cat([s[:-1], e])                =>  where(arange(n) == n - 1, e, s)           also cat([e, s[1:]])
    gradient(lambda s: s[i], s, d)  =>  where(arange(n) == i, d[None], 0)
    cat([s, zeros(N - n)])          =>  index_add(zeros(N), 0, arange(n), s)      N rows, of a list with images
    w[:n]                           =>  index_select(w, 0, arange(n))             the n atoms of such a list

A model that pads the atoms with one that is none does so. On several ranks one of them has the row.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...ir.lengths import length, one_beside
from ...ir.operators import is_zero
from ...ir.writer import Writer, ndim
from ...rules.base import argument, arguments

aten = torch.ops.aten


def _select(write: Writer, node: fx.Node) -> fx.Node | None:
    source, dim, number = arguments(node)[:3]
    here = _here(write, source, dim, number)
    return _found(write, source, dim, here, keep=False) if here is not None else None


def _slice(write: Writer, node: fx.Node) -> fx.Node | None:
    source, dim, number = range_of(node, 1)
    if _is_one_row(node, dim):
        here = _here(write, source, dim, number)
        return _found(write, source, dim, here, keep=True) if here is not None else None
    end = argument(node, 3, "end", None)
    if number != 0 or not isinstance(end, fx.Node) or not _are_first(node.meta["val"], source, dim):
        return None
    first = write(aten.arange.default, end, dtype=torch.int64, device=source.meta["val"].device)
    return write(aten.index_select.default, source, dim, first, value=node.meta["val"])


def _slice_scatter(write: Writer, node: fx.Node) -> fx.Node | None:
    source, dim, number = range_of(node, 2)
    value: Any = node.args[1]
    here = _here(write, source, dim, number) if _is_one_row(value, dim) else None
    return write(aten.where.self, here, value, source) if here is not None else None


def _select_scatter(write: Writer, node: fx.Node) -> fx.Node | None:
    source, value, dim, number = arguments(node)[:4]
    here = _here(write, source, dim, number)
    return write(aten.where.self, here, write(aten.unsqueeze.default, value, dim), source) if here is not None else None


def _select_backward(write: Writer, node: fx.Node) -> fx.Node | None:
    gradient, sizes, dim, number = arguments(node)[:4]
    here = _here(write, node, dim, number, sizes)
    return alone(write, here, write(aten.unsqueeze.default, gradient, dim)) if here is not None else None


def _slice_backward(write: Writer, node: fx.Node) -> fx.Node | None:
    gradient, sizes, dim, number = arguments(node)[:4]
    if _is_one_row(gradient, dim):
        here = _here(write, node, dim, number, sizes)
        return alone(write, here, gradient) if here is not None else None
    if number == 0 and _are_first(gradient.meta["val"], node, dim):
        return _put_first(write, node, gradient, dim, sizes)
    missing = _missing(gradient, dim)
    source = gradient.args[0]
    if missing is None or number != missing + 1 or not _as_many(source, node, dim):
        return None
    here = _here(write, node, dim, missing, sizes)
    return alone(write, write(aten.logical_not.default, here), source) if here is not None else None


def _cat(write: Writer, node: fx.Node) -> fx.Node | None:
    """A join of all rows but the last (or but the first) with one row in its place; None for other joins."""
    pieces, dim = (*arguments(node), 0)[:2]
    if len(pieces) == 2 and is_zero(pieces[1]) and _are_first(pieces[0].meta["val"], node, dim):
        rows, rest = pieces
        sizes = [write.size(rows, d) for d in range(ndim(node))]
        sizes[dim] = write(operator.add, sizes[dim], rest.args[0][dim], value=node.meta["val"].shape[dim])
        return _put_first(write, node, rows, dim, sizes)
    if len(pieces) != 2 or not any(_is_one_row(piece, dim) for piece in pieces):
        return None
    last = _is_one_row(pieces[1], dim)
    rest, row = pieces if last else reversed(pieces)
    missing = -1 if last else 0
    if _missing(rest, dim) != missing:
        return None
    here = _here(write, rest.args[0], dim, missing)
    return write(aten.where.self, here, row, rest.args[0]) if here is not None else None


def _missing(node: fx.Node, dim: int) -> int | None:
    """The number of the only row that is not in a range: the last one (-1), or the first (0); None for other ranges."""
    if node.target is not aten.slice.Tensor:
        return None
    source, of, start = range_of(node, 1)
    if of % ndim(node) != dim % ndim(node) or isinstance(start, fx.Node):
        return None
    part = one_beside(length(source.meta["val"], of), start, length(node.meta["val"], of))
    return {("rows", "last"): -1, ("rows", "first"): 0}.get(part) if part is not None else None


def _are_first(part: Tensor, whole: fx.Node, dim: int) -> bool:
    """True if the number of some rows is a size of its own, which does not depend on the number of all rows."""
    sizes = [value.shape[dim] for value in (part, whole.meta["val"])]
    symbols = [n.node.expr.free_symbols if isinstance(n, torch.SymInt) else set() for n in sizes]
    return all(symbols) and not symbols[0] & symbols[1]


def _put_first(write: Writer, node: fx.Node, rows: fx.Node, dim: int, sizes: Any) -> fx.Node:
    """A table of given sizes that has `rows` first, and zeros after them."""
    value = node.meta["val"]
    zeros = write(aten.full.default, sizes, 0, value=value, dtype=value.dtype, device=value.device)
    each = write(aten.arange.default, write.size(rows, dim), dtype=torch.int64, device=value.device)
    return write(aten.index_add.default, zeros, dim, each, rows)


def _as_many(one: fx.Node, two: fx.Node, dim: int) -> bool:
    return str(one.meta["val"].shape[dim]) == str(two.meta["val"].shape[dim])


def range_of(node: fx.Node, position: int) -> tuple[fx.Node, int, Any]:
    """The tensor that a range is taken of, its dimension and its start."""
    given: Any = (*node.args, *(0, None)[len(node.args) - position :])
    start = given[position + 1] if position + 1 < len(given) else node.kwargs.get("start")
    return given[0], given[position], 0 if start is None else start


def _is_one_row(node: fx.Node, dim: int) -> bool:
    return str(node.meta["val"].shape[dim]) == "1"


def _found(write: Writer, source: fx.Node, dim: int, here: fx.Node, keep: bool) -> fx.Node:
    return write(aten.sum.dim_IntList, alone(write, here, source), [dim % ndim(source)], keep)


def alone(write: Writer, here: fx.Node, rows: fx.Node) -> fx.Node:
    """Rows, or one row, at the places where `here` is true; zeros elsewhere."""
    value = rows.meta["val"]
    zero = write(aten.full.default, [], 0, dtype=value.dtype, device=value.device)
    return write(aten.where.self, here, rows, zero)


def _here(write: Writer, table: fx.Node, dim: int, number: Any, sizes: Any = None) -> fx.Node | None:
    """A mask of the row of a number; None if the dimension has the same size in every graph, or values are not real.

    `sizes` are those of a table that does not exist yet.
    """
    value = table.meta["val"]
    dim, size = dim % ndim(table), value.shape[dim]
    if not isinstance(size, torch.SymInt) or not value.is_floating_point():
        return None
    rows = write.size(table, dim) if sizes is None else sizes[dim]
    if isinstance(number, int) and number < 0:
        number = write(operator.add, rows, number, value=size + number)
    each = write(aten.arange.default, rows, dtype=torch.int64, device=value.device)
    shape = [rows if d == dim else 1 for d in range(ndim(table))]
    return write(aten.eq.Scalar, write(aten.reshape.default, each, shape), number)


def _split(write: Writer, node: fx.Node) -> None:
    """The first piece of a list, as long as something else is; the others stay."""
    source, sizes, dim = (*arguments(node), 0)[:3]
    first = node.meta["val"][0]
    for piece in list(node.users):
        if piece.args[1] == 0 and isinstance(sizes[0], fx.Node) and _are_first(first, source, dim):
            rows = write(aten.arange.default, sizes[0], dtype=torch.int64, device=first.device)
            piece.replace_all_uses_with(write(aten.index_select.default, source, dim, rows, value=first))


ROWS_BY_NUMBER = {
    aten.cat.default: _cat,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.select_backward.default: _select_backward,
    aten.slice_backward.default: _slice_backward,
}
