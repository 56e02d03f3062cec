"""Gathers and scatters: the operators through which index spaces meet.

    gather   y = index_select(x, 0, p)       y[i] = x[p[i]]          x: [atoms, F], p: edges -> atoms, y: [edges, F]
    scatter  x = index_add(x0, 0, p, y)      x[p[i]] += y[i]

Classification is by dimension and provenance, never by the operator's name: most ``index_select`` calls of an
equivariant model walk constant tables along feature dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..ir import Access, Dim, Placement, Reduction, Space
from ..ir.operators import facts, is_zero, operators
from .base import Context, Refused, one_row_dimension, rank, rule, wrap
from .pointwise import broadcast

aten = torch.ops.aten


def makes_a_matrix(node: fx.Node) -> bool:
    """True if a view shows a list of integers, as long as two sizes multiplied, as a matrix.

    Only the matrix tells which of the sizes is the number of rows.
    """
    if not facts(node).reshape:
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if before.dtype.is_floating_point or before.dim() != 1 or after.dim() < 2:
        return False
    size = before.shape[0]
    return isinstance(size, torch.SymInt) and len(size.node.expr.free_symbols) > 1


def accesses(node: fx.Node) -> list[Access]:
    """Every use of an index operand by `node`."""
    args: Any = node.args
    row = facts(node).rows
    if row is None:
        return []
    table, index = args[row.table], args[row.index]
    if row.several:
        return [Access(row.kind, node, table, d, i) for d, i in enumerate(index) if i is not None]
    dim = 0 if row.dim is None else wrap(args[row.dim], table)
    return [Access(row.kind, node, table, dim, index, not row.by_element)]


def index_operands(node: fx.Node) -> list[fx.Node]:
    """The index operands of `node`: they say which rows, not which values."""
    return [a.index for a in accesses(node) if isinstance(a.index, fx.Node)]


def _operators(kind: str, by_element: bool = False, several: bool = False) -> tuple[Any, ...]:
    """The operators that read rows of tables, or add to them, in one way."""
    way = (kind, by_element, several)
    return operators(lambda f: f.rows is not None and (f.rows.kind, f.rows.by_element, f.rows.several) == way)


def _local_dim(ctx: Context, access: Access) -> Dim:
    """The indexed dimension of the table. If it is of rows, they must be reached through a pointer."""
    dim = ctx.dims(access.table)[access.dim]
    if dim and not (len(dim) == 1 and isinstance(dim[0], Space)):
        raise Refused("an index into a dimension that holds more than rows")
    if dim and isinstance(dim[0], Space) and not ctx.points_at(access.index, dim[0]):
        raise Refused("rows picked by their numbers")
    return dim


@rule(*_operators("gather"))
def select_rows(ctx: Context, node: fx.Node) -> Placement:
    (access,) = accesses(node)
    _local_dim(ctx, access)
    table = ctx.dims(access.table)
    return Placement(one_row_dimension((*table[: access.dim], *ctx.dims(access.index), *table[access.dim + 1 :])))


@rule(*_operators("gather", by_element=True))
def gather(ctx: Context, node: fx.Node) -> Placement:
    (access,) = accesses(node)
    _local_dim(ctx, access)
    dims = ctx.dims(access.index)
    for i, (mine, theirs) in enumerate(zip(dims, ctx.dims(access.table), strict=True)):
        if i != access.dim and mine != theirs:
            raise Refused("a gather whose index and table run over different rows")
    return Placement(dims)


@rule(*_operators("gather", several=True))
def index(ctx: Context, node: fx.Node) -> Placement:
    return Placement(one_row_dimension(_indexed(ctx, node)))


def _indexed(ctx: Context, node: fx.Node) -> tuple[Dim, ...]:
    """Advanced indexing: the indices broadcast together and stand where the first of them is, if adjacent."""
    found = accesses(node)
    source: Any = node.args[0]
    for access in found:
        _local_dim(ctx, access)
    _check_row_local(ctx, found)
    indexed = [a.dim for a in found]
    rest = [(i, d) for i, d in enumerate(ctx.dims(source)) if i not in indexed]
    joined = broadcast(ctx, [a.index for a in found], max(rank(a.index) for a in found))
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if adjacent else 0
    before = [d for i, d in rest if adjacent and i < at]
    after = [d for i, d in rest if not adjacent or i >= at]
    return (*before, *joined, *after)


def _check_row_local(ctx: Context, found: list[Access]) -> None:
    """Indices that run over rows must each go with a pointer into the table's rows, or with a whole dimension."""
    if any(i.meta["val"].dtype == torch.bool for i in (a.index for a in found)):
        raise Refused("a boolean mask as an index")


@rule(*_operators("scatter", several=True))
def index_put(ctx: Context, node: fx.Node) -> Placement:
    found = accesses(node)
    if len(node.args) < 4 or not node.args[3]:
        return _overwritten(ctx, node, found)
    values: Any = node.args[2]
    places = zip(_indexed(ctx, node)[::-1], ctx.dims(values)[::-1], ctx.shape(values)[::-1], strict=False)
    for written, given, size in places:
        if given or size != 1:  # else one value is written to all
            _check_in_step(written, given)
    rows = broadcast(ctx, [a.index for a in found], max(rank(a.index) for a in found))
    return _scattered(ctx, node, found, any(rows))


def _overwritten(ctx: Context, node: fx.Node, found: list[Access]) -> Placement:
    """Feature columns of each row overwritten by constant lists of columns."""
    dims = ctx.dims(node.args[0])
    if any(dims[a.dim] or any(ctx.dims(a.index)) for a in found):
        raise Refused("rows overwritten through an index (only accumulating writes have a defined order)")
    values: Any = node.args[2]
    written = _indexed(ctx, node)[::-1]
    for i, (theirs, size) in enumerate(zip(ctx.dims(values)[::-1], ctx.shape(values)[::-1], strict=True)):
        if theirs != written[i] and not (size == 1 and not theirs):
            raise Refused(f"rows of {_shown(written[i])} overwritten by rows of {_shown(theirs)}")
    return Placement(dims)


def reduction(node: fx.Node) -> Reduction:
    """The operation by which a scatter combines values that meet in one row."""
    row = facts(node).rows
    how: Any = "sum" if row is None or row.reduction is None else node.args[row.reduction]
    return how


@rule(*_operators("scatter"), *_operators("scatter", by_element=True))
def scatter(ctx: Context, node: fx.Node) -> Placement:
    """Rows added (or compared) where a pointer says; sums and means by scatter_reduce were rewritten before."""
    found = accesses(node)
    if reduction(node) not in ("sum", "amax", "amin"):
        raise Refused(f"a scatter that combines rows by {reduction(node)!r}")
    if not node.kwargs.get("include_self", True):
        raise Refused("a scatter_reduce with include_self=False")
    _local_dim(ctx, found[0])
    source: Any = node.args[3]
    over = ctx.dims(source)[found[0].dim] if rank(source) else ()
    there = ctx.dims(found[0].index)
    _check_in_step(there[0 if found[0].dense else found[0].dim] if there else (), over)
    return _scattered(ctx, node, found, bool(over))


def _check_in_step(index: Dim, source: Dim) -> None:
    """Refuse values and an index of other rows, or in another order (row 1 twice, or all rows once and again)."""
    if index != source:
        raise Refused(f"values of {_shown(source)} added where an index of {_shown(index)} says")


def _shown(dim: Dim) -> str:
    return "*".join(map(str, dim)) or "no rows"


def _scattered(ctx: Context, node: fx.Node, found: list[Access], over_rows: bool) -> Placement:
    """The placement of a scatter.

    Into rows: rows. Into a whole table from rows: every rank adds its own rows, a partial result.
    """
    base: Any = node.args[0]
    dims = ctx.dims(base)
    if any(dims[a.dim] for a in found):
        return Placement(dims)
    if any(dims):
        return Placement(dims)  # rows that write to their own feature columns
    if over_rows and reduction(node) == "sum" and not is_zero(base):
        raise Refused("a sum over rows added to a value that every rank holds")
    return Placement(dims, partial=over_rows, reduction=reduction(node))


@rule(aten.scatter.src, aten.scatter.value)
def overwrite_in_rows(ctx: Context, node: fx.Node) -> Placement:
    """Elements of each row overwritten.

    Whole rows are refused, since the order of writes to them would be undefined.
    """
    base, dim, index, source = node.args[:4]
    dims = ctx.dims(base)
    if dims[wrap(dim, base)]:  # type: ignore[arg-type]
        raise Refused("rows overwritten through an index (only accumulating writes have a defined order)")
    if any(isinstance(n, fx.Node) and ctx.dims(n) != dims for n in (index, source)):
        raise Refused("a scatter whose operands run over different rows")
    return Placement(dims)
