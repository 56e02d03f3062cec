"""Part of pass 1: rows that lie within rows, each numbered by its row and its place there.

    index_add(zeros(n*16), 0, p*16 + k, v)  =>  zeros(n, 16)[p, k] += v
    index_select(x, 0, p*16 + k)            =>  x.reshape(n, 16)[p, k]

A model that sums something for each species around each atom does so. Rows of an atom stay with it on its rank.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..rules.indexing import is_zero
from .writer import Writer, ndim

aten = torch.ops.aten

_SHOWN = {
    aten.reshape.default, aten.view.default, aten.select.int, aten.slice.Tensor, aten.flip.default,
    aten.unbind.int, operator.getitem, aten._to_copy.default,
}  # fmt: skip
"""What shows elements of an index, or casts it."""
_MULTIPLES = {aten.mul.Tensor, aten.mul.Scalar}


def selected_within_rows(write: Writer, node: fx.Node, table: Any, dim: int, index: fx.Node) -> fx.Node | None:
    """Rows that an index selects, or None if it counts no rows within rows."""
    found = _rows_within_rows(write, table, dim, index)
    if found is None:
        return None
    number, indices = found
    return write(aten.index.Tensor, _split_rows(write, table, number), indices, value=node.meta["val"])


def added_within_rows(write: Writer, base: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> fx.Node | None:
    """`base` with rows added where an index says, or None if it counts no rows within rows."""
    found = _rows_within_rows(write, base, dim, index)
    if found is None:
        return None
    number, indices = found
    split = _split_rows(write, base, number)
    split = write.filled(split, 0) if is_zero(base) else split
    added = write(aten.index_put.default, split, indices, source, True)
    return write(aten.reshape.default, added, [write.size(base, d) for d in range(ndim(base))])


def _rows_within_rows(write: Writer, table: fx.Node, dim: int, index: fx.Node) -> tuple[int, list[fx.Node]] | None:
    """K and [p, k] of an index ``p*K + k`` into n*K rows: K in a row for each of n rows."""
    size = table.meta["val"].shape[dim]
    if dim or not isinstance(size, torch.SymInt) or index.meta["val"].dim() != 1:
        return None
    number, rows = size.node.expr.as_coeff_Mul()
    if not rows.is_Symbol or not number.is_Integer or number < 2 or not _is_multiple_and_rest(index, int(number)):
        return None
    whole = write(aten.div.Tensor_mode, index, int(number), rounding_mode="floor")
    return int(number), [whole, write(aten.remainder.Scalar, index, int(number))]


def _is_multiple_and_rest(index: Any, number: int) -> bool:
    """Whether an index is written as a multiple of a number, plus something."""
    while index.op == "call_function" and index.target in _SHOWN:
        index = index.args[0]
    terms = index.args if index.target is aten.add.Tensor else ()
    return any(isinstance(t, fx.Node) and t.target in _MULTIPLES and number in t.args for t in terms)


def _split_rows(write: Writer, table: fx.Node, number: int) -> fx.Node:
    rows = write(operator.floordiv, write.size(table, 0), number, value=table.meta["val"].shape[0] // number)
    return write(aten.reshape.default, table, [rows, number, *[write.size(table, d) for d in range(1, ndim(table))]])
