"""Rows that lie within rows, each numbered by its row and its place there.

    index_add(zeros(n * 16), 0, p * 16 + q, w)  =>  index_put(zeros(n, 16), [p, q], w, True).reshape(n * 16)
    b[p * 16 + q]                               =>  b.reshape(n, 16)[p, q]        b of n * 16 rows
    h.reshape(n * l)[j]                         =>  h[j // l, j % l]              h of n rows, l neighbours at most
    a.reshape(n * 16)[j]                        =>  a[j // 16, j % 16]            a of n rows

A model that sums something for each species around each atom does so, one that has a place for each neighbour of each
atom, and one that lists the elements of a matrix of each edge. Rows of an atom stay with it on its rank.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ...ir.lengths import Grid, grid, length
from ...ir.operators import facts, is_zero
from ...ir.writer import Writer, ndim

aten = torch.ops.aten

_SHOWN = {
    aten.reshape.default, aten.view.default, aten.select.int, aten.slice.Tensor, aten.flip.default,
    aten.unbind.int, operator.getitem, aten._to_copy.default,
}  # fmt: skip
"""Operators that show elements of an index, or cast it."""
_MULTIPLES = {aten.mul.Tensor, aten.mul.Scalar}


def selected_within_rows(write: Writer, node: fx.Node, table: Any, dim: int, index: fx.Node) -> fx.Node | None:
    """The rows that an index selects; None if it counts no rows within rows."""
    table = _one_list(table)
    found = _rows_within_rows(write, table, dim, index)
    if found is None:
        return None
    inner, indices = found
    return write(aten.index.Tensor, _split_rows(write, table, inner), indices, value=node.meta["val"])


def added_within_rows(write: Writer, base: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> fx.Node | None:
    """`base` with rows added at an index; None if it counts no rows within rows."""
    found = _rows_within_rows(write, base, dim, index)
    if found is None:
        return None
    inner, indices = found
    split = _split_rows(write, base, inner)
    split = write.filled(split, 0) if is_zero(base) else split
    added = write(aten.index_put.default, split, indices, source, True)
    return write(aten.reshape.default, added, [write.size(base, d) for d in range(ndim(base))])


def _rows_within_rows(write: Writer, table: fx.Node, dim: int, index: fx.Node) -> tuple[Any, list[fx.Node]] | None:
    """K and [p, k] of an index ``p*K + k`` into n*K rows: K in a row for each of n rows."""
    size = table.meta["val"].shape[dim]
    if dim or not isinstance(size, torch.SymInt) or index.meta["val"].dtype not in (torch.int32, torch.int64):
        return None
    inner: Any = _columns(table)
    if inner is None:
        places = grid(size.node.expr)
        if index.meta["val"].dim() != 1 or places is None:
            return None
        inner = int(places.columns)
        if not (_is_multiple_and_rest(index, inner) or _are_elements(table, places)):
            return None
        whole = write(aten.div.Tensor_mode, index, inner, rounding_mode="floor")
        return inner, [whole, write(aten.remainder.Scalar, index, inner)]
    width = write(aten.scalar_tensor.default, inner, dtype=torch.int64, device=index.meta["val"].device)
    whole = write(aten.div.Tensor_mode, index, width, rounding_mode="floor")
    return inner, [whole, write(aten.remainder.Tensor, index, width)]


def _columns(table: fx.Node) -> fx.Node | None:
    """The number of columns of a matrix whose elements, row by row, are the rows of a table."""
    if not (facts(table).reshape or table.target is aten.full.default):
        return None
    shape: Any = table.args[1 if facts(table).reshape else 0]
    length = shape[0] if shape else None
    if not isinstance(length, fx.Node) or length.target is not operator.mul:
        return None
    sizes: Any = length.args
    if not all(isinstance(n, fx.Node) and n.meta["val"].node.expr.is_Symbol for n in sizes):
        return None
    computed = [n for n in sizes if symbol_is_type(n.meta["val"].node.expr, SymT.UNBACKED_INT)]
    return computed[0] if len(computed) == 1 else sizes[1]  # type: ignore[no-any-return]


def _is_multiple_and_rest(index: Any, number: int) -> bool:
    """True if an index is written as a multiple of a number, plus something."""
    while index.op == "call_function" and index.target in _SHOWN:
        index = index.args[0]
    terms = index.args if index.target is aten.add.Tensor else ()
    return any(isinstance(t, fx.Node) and t.target in _MULTIPLES and number in t.args for t in terms)


def _one_list(table: Any) -> Any:
    """The only list of a join of one list; else the table itself."""
    while table.target is aten.cat.default and len(table.args[0]) == 1:
        (table,) = table.args[0]
    return table


def _are_elements(table: fx.Node, places: Grid) -> bool:
    """True if a list holds the elements of rows, one row after another: it is made of them, or they of it."""
    if facts(table).reshape:
        return _has_rows(table.args[0], places)
    if table.target is not aten.full.default:
        return False
    pending = [user for added in table.users for user in added.users]
    while pending:
        node = pending.pop()
        if facts(node).reshape and _has_rows(node, places):
            return True
        if node.target is aten.slice.Tensor and length(node.meta["val"], 0) == places.length:  # of all
            pending += node.users
    return False


def _has_rows(node: Any, places: Grid) -> bool:
    value = node.meta["val"]
    return bool(value.dim() > 1 and length(value, 0) == places.rows)


def _split_rows(write: Writer, table: fx.Node, inner: Any) -> fx.Node:
    size, columns = table.meta["val"].shape[0], inner.meta["val"] if isinstance(inner, fx.Node) else inner
    rows = write(operator.floordiv, write.size(table, 0), inner, value=size // columns)
    return write(aten.reshape.default, table, [rows, inner, *[write.size(table, d) for d in range(1, ndim(table))]])
