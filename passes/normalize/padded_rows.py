"""A table with a row more than there are atoms, for what is nothing to point at.

    cat([s, e])[r]                        =>  where(r == n, e, s[where(r == n, 0, r)])    also cat([e, s])
    index_add(zeros(n + 1), 0, r, w)[:n]  =>  index_add(zeros(n), 0, where(r == n, 0, r), where(r == n, 0, w))
    index_add(zeros(n + 1), 0, r, w)[n:]  =>  sum(where(r == n, w, 0), 0, True)
    gradient(lambda o: o[:n], o, s)       =>  cat([s, zeros(1)])                  o of n + 1 rows; of o[n:] likewise

Models that fill lists of neighbours up to one length do so, with numbers of the row more; gradients are sums into such
a table.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch import fx

from ...ir.lengths import as_expression, length, one_beside
from ...ir.operators import is_zero
from ...ir.writer import Writer, ndim
from ...rules.base import arguments
from .rows_by_number import alone, range_of

aten = torch.ops.aten


def selected_from_padded(write: Writer, node: fx.Node, table: Any, dim: int, index: fx.Node) -> fx.Node | None:
    """The rows that an index selects from rows and one more; None if the table is of another form."""
    if table.target is aten.add.Tensor and not table.kwargs:
        both = [selected_from_padded(write, node, n, dim, index) for n in table.args if isinstance(n, fx.Node)]
        return write(aten.add.Tensor, *both, value=node.meta["val"]) if len(both) == 2 and all(both) else None
    if table.target is not aten.cat.default or not _is_integral(index) or (dim and ndim(index) > 1):
        return None
    pieces, along = (*arguments(table), 0)[:2]
    if along % ndim(table) != dim or len(pieces) != 2:
        return None
    comes_first = _length(pieces[0], dim) == 1
    one, rows = pieces if comes_first else reversed(pieces)
    if _length(one, dim) != 1 or not _length(rows, dim).is_Symbol:
        return None
    there, where = _pointer(write, index, write.size(rows, dim), comes_first)
    if ndim(index) == 1:
        found = write(aten.index_select.default, rows, dim, where, value=node.meta["val"])
    else:
        found, one = write(aten.index.Tensor, rows, [where], value=node.meta["val"]), write(aten.select.int, one, 0, 0)
    return write(aten.where.self, _beside(write, there, ndim(found) - dim), found, one, value=node.meta["val"])


def part_of_padded(write: Writer, node: fx.Node) -> fx.Node | None:
    """The rows, or the one more, of a table that was summed into; None if a slice is another part."""
    table, dim, start = range_of(node, 1)
    dim %= ndim(table)
    base, index, values = _summed(table, dim)
    if base is None or not is_zero(base) or not _is_integral(index):
        return None
    part = _part(table, node, dim, start)
    if part is None:
        return None
    kind, comes_first = part[0], part[1] == "first"
    n = write(operator.sub, write.size(table, dim), 1, value=table.meta["val"].shape[dim] - 1)
    there, where = _pointer(write, index, n, comes_first)
    chosen = _beside(write, there, ndim(values) - dim)
    if kind == "one":
        spare = alone(write, write(aten.logical_not.default, chosen), values)
        total = write(aten.sum.dim_IntList, spare, list(range(dim, dim + ndim(index))))
        return write(aten.unsqueeze.default, total, dim)
    kept = alone(write, chosen, values)
    sizes = [n if d == dim else write.size(table, d) for d in range(ndim(table))]
    empty = write(
        aten.full.default,
        sizes,
        0,
        value=node.meta["val"],
        dtype=values.meta["val"].dtype,
        device=values.meta["val"].device,
    )
    if ndim(index) == 1:
        return write(aten.index_add.default, empty, dim, where, kept, value=node.meta["val"])
    return write(aten.index_put.default, empty, [where], kept, True, value=node.meta["val"])


def padded_gradient(write: Writer, node: fx.Node) -> fx.Node | None:
    """The gradient of the rows, or of the one more, as a table of both; None if a slice is another part."""
    gradient, sizes, dim, start = arguments(node)[:4]
    dim %= ndim(node)
    part = _part(node, gradient, dim, start)
    if part is None:
        return None
    is_one, comes_first = part[0] == "one", part[1] == "first"
    size: Any = 1
    shape = list(node.meta["val"].shape)
    shape[dim] = 1
    if is_one:
        shape[dim] = node.meta["val"].shape[dim] - 1
        size = write(operator.sub, sizes[dim], 1, value=shape[dim])
    value = node.meta["val"].new_empty(shape)
    others = [size if d == dim else n for d, n in enumerate(sizes)]
    zeros = write(aten.full.default, others, 0, value=value, dtype=value.dtype, device=value.device)
    pieces = [gradient, zeros] if is_one == comes_first else [zeros, gradient]
    return write(aten.cat.default, pieces, dim, value=node.meta["val"])


def _part(table: fx.Node, part: fx.Node, dim: int, start: Any) -> tuple[str, str] | None:
    """The kind of a part of a table, the rows or the one more, and the place of the one; None if it is neither."""
    size = _length(table, dim)
    begin = as_expression(start.meta["val"] if isinstance(start, fx.Node) else start or 0)
    return one_beside(size, begin, _length(part, dim)) if (size - 1).is_Symbol else None


def _summed(table: Any, dim: int) -> tuple[Any, Any, Any]:
    """The table, the index and the values of a sum of rows into a table; three times None for other operators."""
    if table.target is aten.index_add.default and table.args[1] % ndim(table) == dim and not table.kwargs:
        return table.args[0], table.args[2], table.args[3]
    if table.target is aten.index_put.default and len(table.args[1]) == 1 and table.args[3:] == (True,) and not dim:
        (index,) = table.args[1]
        whole = ndim(table.args[2]) == ndim(index) + ndim(table) - 1
        return (table.args[0], index, table.args[2]) if whole else (None, None, None)
    return None, None, None


def _pointer(write: Writer, index: fx.Node, n: Any, comes_first: bool) -> tuple[fx.Node, fx.Node]:
    """For an index into n rows and one more: a mask of entries that point at the n rows, and row numbers (else 0).

    -1 is the last row of all. An entry beyond all rows stays beyond, and is refused.
    """
    device = index.meta["val"].device
    rows = write(aten.scalar_tensor.default, n, dtype=torch.int64, device=device)
    from_end = write(aten.add.Tensor, write(aten.add.Tensor, index, rows), 1)
    number = write(aten.where.self, write(aten.lt.Scalar, index, 0), from_end, index)
    spare = write(aten.full.default, [], 0, dtype=torch.int64, device=device) if comes_first else rows
    nowhere = write(aten.eq.Tensor, number, spare)
    own = write(aten.sub.Tensor, number, 1) if comes_first else number
    return write(aten.logical_not.default, nowhere), write(aten.masked_fill.Scalar, own, nowhere, 0)


def _beside(write: Writer, mask: fx.Node, dims: int) -> fx.Node:
    """A mask over the first dimensions, with dimensions of size 1 added up to `dims`."""
    while ndim(mask) < dims:
        mask = write(aten.unsqueeze.default, mask, -1)
    return mask


def _length(table: fx.Node, dim: int) -> sympy.Expr:
    return length(table.meta["val"], dim)


def _is_integral(index: fx.Node) -> bool:
    return index.meta["val"].dtype in (torch.int32, torch.int64)
