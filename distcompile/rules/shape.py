"""Operators that move elements about without computing.

reshape [atoms, 16, 3]     -> [atoms, 48]
reshape [atoms, 16]        -> [atoms*16]          one dimension of two factors, atoms outermost
cat     [atoms, 8], [atoms, 4] along 1 -> [atoms, 12]
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from ..ir import Dim, Factor, Halo, Placement, Space
from ..ir.operators import operators
from .base import Context, Refused, argument, arguments, one_row_dimension, rank, rule, wrap
from .blocks import blocks_of, factors, joined, named, part

aten = torch.ops.aten


def _size(factor: Factor) -> sympy.Expr:
    if isinstance(factor, Halo):
        raise Refused("halo rows that are reshaped")
    return factor.symbol if isinstance(factor, Space) else sympy.Integer(factor)


def regroup(factors: list[Factor], shape: tuple[sympy.Expr, ...]) -> tuple[Dim, ...]:
    """Distribute a row-major product of `factors` over dimensions of sizes `shape`."""
    pending = [f for f in factors if f != 1]
    dims: list[Dim] = []
    for size in shape:
        taken: list[Factor] = []
        missing = size
        while missing != 1 and pending:
            factor = pending.pop(0)
            ratio = sympy.cancel(missing / _size(factor))
            if ratio.is_Integer or not ratio.is_number:
                taken.append(factor)
                missing = ratio
            elif isinstance(factor, int) and missing.is_Integer and factor % int(missing) == 0:
                taken.append(int(missing))
                pending.insert(0, factor // int(missing))
                missing = sympy.Integer(1)
            else:
                raise Refused("a reshape that cuts across rows")
        if missing != 1:
            raise Refused("a reshape that cuts across rows")
        dims.append(tuple(taken) if any(isinstance(f, Space) and f.sharded for f in taken) else ())
    return tuple(dims)


@rule(*operators(lambda f: f.reshape))
def reshape(ctx: Context, node: fx.Node) -> Placement:
    """Split and merge dimensions, following each factor in row-major order."""
    (source, *_) = arguments(node)
    assert isinstance(source, fx.Node)
    every: list[Factor] = []
    for dim, size in zip(ctx.dims(source), ctx.shape(source), strict=True):
        every.extend(factors(dim) or _replicated(ctx, size))
    return Placement(tuple(named(ctx, dim) for dim in regroup(every, ctx.shape(node))))


def _replicated(ctx: Context, size: sympy.Expr) -> tuple[Factor, ...]:
    factor = ctx.whole(size)
    if factor is None:
        raise Refused(f"a reshape of a dimension of size {size} beside distributed rows")
    return (factor,)


@rule(aten.expand.default)
def expand(ctx: Context, node: fx.Node) -> Placement:
    """Broadcast; a dimension that is new takes the space that its size says."""
    source = arguments(node)[0]
    assert isinstance(source, fx.Node)
    old, shape = ctx.dims(source), ctx.shape(source)
    new = node.meta["val"].shape
    offset = len(new) - len(old)
    dims = [old[i - offset] if i >= offset and shape[i - offset] != 1 else ctx.dim_of(n) for i, n in enumerate(new)]
    return Placement(one_row_dimension(dims))


@rule(aten.unsqueeze.default)
def unsqueeze(ctx: Context, node: fx.Node) -> Placement:
    dims = list(ctx.dims(arguments(node)[0]))
    dims.insert(arguments(node)[1] % (len(dims) + 1), ())
    return Placement(tuple(dims))


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(ctx: Context, node: fx.Node) -> Placement:
    source: Any = arguments(node)[0]
    shape = ctx.shape(source)
    which = arguments(node)[1] if len(arguments(node)) > 1 else range(len(shape))
    chosen = {wrap(d, source) for d in ([which] if isinstance(which, int) else which)}
    return Placement(tuple(d for i, d in enumerate(ctx.dims(source)) if not (i in chosen and shape[i] == 1)))


@rule(aten.view_as_real.default)
def complex_parts(ctx: Context, node: fx.Node) -> Placement:
    """Real and imaginary parts are a last dimension of two, which is never rows."""
    return Placement((*ctx.dims(arguments(node)[0]), ()))


@rule(aten.permute.default)
def permute(ctx: Context, node: fx.Node) -> Placement:
    source, order = arguments(node)
    dims = ctx.dims(source)
    return Placement(tuple(dims[i] for i in order))


@rule(aten.t.default, aten.transpose.int)
def transpose(ctx: Context, node: fx.Node) -> Placement:
    dims = list(ctx.dims(arguments(node)[0]))
    if len(dims) > 1:
        a, b = arguments(node)[1:] if len(arguments(node)) > 1 else (0, 1)
        dims[a], dims[b] = dims[b], dims[a]
    return Placement(tuple(dims))


@rule(aten.select.int, aten.unbind.int)
def select(ctx: Context, node: fx.Node) -> Any:
    source: Any = arguments(node)[0]
    dims = list(ctx.dims(source))
    dim = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, source)
    if dims.pop(dim):
        raise Refused("one row picked by its number")
    return _each(node, Placement(tuple(dims)))


@rule(aten.slice.Tensor)
def slice_(ctx: Context, node: fx.Node) -> Placement:
    source: Any = arguments(node)[0]
    dims = ctx.dims(source)
    dim = wrap(arguments(node)[1] if len(arguments(node)) > 1 else 0, source)
    if not dims[dim] or ctx.shape(node)[dim] == ctx.shape(source)[dim]:
        return Placement(dims)
    start, step = argument(node, 2, "start", 0), argument(node, 4, "step", 1)
    return Placement(_part(ctx, dims, dim, start, ctx.shape(node)[dim], "a range of rows picked by number", step))


def _part(
    ctx: Context, dims: tuple[Dim, ...], dim: int, start: Any, size: sympy.Expr, otherwise: str, step: Any = 1
) -> tuple[Dim, ...]:
    """`dims` after a range of dimension `dim` was picked, which must be whole blocks of rows."""
    position = ctx.program.size(start.meta["val"] if hasattr(start, "meta") else start or 0)
    found = part(ctx, dims[dim], position, size) if step == 1 else None
    if found is None:
        raise Refused(otherwise)
    return (*dims[:dim], found, *dims[dim + 1 :])


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def split(ctx: Context, node: fx.Node) -> Any:
    source: Any = arguments(node)[0]
    dims = ctx.dims(source)
    dim = wrap(argument(node, 2, "dim", 0), source)
    if not dims[dim] or len(node.meta["val"]) == 1:
        return _each(node, Placement(dims))
    pieces, start = [], sympy.Integer(0)
    for piece in node.meta["val"]:
        size = ctx.program.size(piece.shape[dim])
        pieces.append(Placement(_part(ctx, dims, dim, start, size, "rows split by number")))
        start = sympy.expand(start + size)
    return tuple(pieces)


def _each(node: fx.Node, one: Placement) -> Any:
    value = node.meta["val"]
    return tuple(one for _ in value) if isinstance(value, list | tuple) else one


@rule(aten.cat.default, aten.stack.default)
def cat(ctx: Context, node: fx.Node) -> Placement:
    """Join along a whole dimension, or rows after rows."""
    parts = [p for p in arguments(node)[0] if ctx.shape(p) != (0,)]
    if node.target is aten.stack.default:
        dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % rank(node)
        dims = list(_common([ctx.dims(p) for p in parts]))
        dims.insert(dim, ())
        return Placement(tuple(dims))
    dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % rank(node)
    along = [ctx.dims(p)[dim] for p in parts]
    dims = list(_common([(*ctx.dims(p)[:dim], (), *ctx.dims(p)[dim + 1 :]) for p in parts]))
    if any(along):
        dims[dim] = _rows_after_rows(ctx, along)
    return Placement(tuple(dims))


def _rows_after_rows(ctx: Context, parts: list[Dim]) -> Dim:
    if len(parts) == 1:
        return parts[0]
    blocks = [blocks_of(dim) for dim in parts]
    if None not in blocks:
        found = joined(ctx, tuple(b for several in blocks for b in several or ()))
        if found is not None:
            return found
    if len(set(parts)) == 1:
        return (len(parts), *parts[0])
    raise Refused("rows of different index spaces joined into one dimension")


def _common(rows: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    merged = list(rows[0])
    for other in rows[1:]:
        for i, dim in enumerate(other):
            if dim != merged[i]:
                raise Refused("operands whose rows differ")
    return tuple(merged)


@rule(aten.select_backward.default, aten.slice_backward.default)
def part_backward(ctx: Context, node: fx.Node) -> Placement:
    """Put a part back into zeros of the original sizes."""
    dims = tuple(ctx.dim_of(n) for n in node.meta["val"].shape)
    dim = arguments(node)[2] % len(dims)
    given: Any = arguments(node)[0]
    if dims[dim] and node.target is aten.select_backward.default:
        raise Refused("rows put back by number")
    if dims[dim] and ctx.shape(given)[dim] != ctx.shape(node)[dim]:
        start, step = arguments(node)[3], arguments(node)[5]
        _check_part(ctx, dims, dim, given, start, step, "rows put back by number")
    return Placement(dims)


def _check_part(
    ctx: Context, dims: tuple[Dim, ...], dim: int, given: fx.Node, start: Any, step: Any, otherwise: str
) -> None:
    """Refuse values that are put into a range of rows but are not those rows."""
    if ctx.dims(given) != _part(ctx, dims, dim, start, ctx.shape(given)[dim], otherwise, step):
        raise Refused(otherwise)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def part_scatter(ctx: Context, node: fx.Node) -> Placement:
    """Overwrite a part along a whole dimension, or whole blocks of rows."""
    base, given = arguments(node)[:2]
    dims = ctx.dims(base)
    dim = argument(node, 2, "dim", 0) % len(dims)
    if dims[dim]:
        otherwise = "rows overwritten by number"
        if node.target is aten.select_scatter.default:
            raise Refused(otherwise)
        start, step = argument(node, 3, "start", 0), argument(node, 5, "step", 1)
        _check_part(ctx, dims, dim, given, start, step, otherwise)
    return Placement(dims)


@rule(aten.constant_pad_nd.default, aten.flip.default, aten.repeat.default, aten.roll.default)
def along_whole(ctx: Context, node: fx.Node) -> Placement:
    """Operators that rearrange whole dimensions only; row dimensions must keep their order, but may come again."""
    source: Any = arguments(node)[0]
    before, after = ctx.shape(source), ctx.shape(node)
    offset = len(after) - len(before)
    dims: list[Dim] = [()] * offset + list(ctx.dims(source))
    moved = _moved(node, len(dims))
    for i, dim in enumerate(dims):
        if dim and node.target is aten.repeat.default and isinstance(times := arguments(node)[1][i], int):
            dims[i] = _rows_after_rows(ctx, [dim] * times)
        elif dim and (after[i] != before[i - offset] or i in moved):
            raise Refused("rows moved by number")
    return Placement(tuple(dims))


def _moved(node: fx.Node, ndim: int) -> set[int]:
    """The dimensions along which elements change their places, even if their number changes too."""
    if node.target is aten.constant_pad_nd.default:
        pads = arguments(node)[1]  # last dimension first: before and after
        return {ndim - 1 - i for i in range(len(pads) // 2) if any(pads[2 * i : 2 * i + 2])}
    if node.target is aten.repeat.default:
        return set()
    dims = argument(node, 1 if node.target is aten.flip.default else 2, "dims", ())
    return {d % ndim for d in dims} if len(dims) else set(range(ndim))  # roll without dimensions: as if flat


@rule(aten.diagonal_backward.default)
def diagonal_backward(ctx: Context, node: fx.Node) -> Placement:
    """Put a diagonal back into zeros of the original sizes."""
    dims = tuple(ctx.dim_of(n) for n in node.meta["val"].shape)
    one, two = (d % len(dims) for d in arguments(node)[3:5])
    if dims[one] or dims[two]:
        raise Refused("a diagonal over rows")
    return Placement(dims)


@rule(aten.tril.default, aten.triu.default)
def triangle(ctx: Context, node: fx.Node) -> Placement:
    """A triangle of the matrix of each row."""
    dims = ctx.dims(arguments(node)[0])
    if any(dims[-2:]):
        raise Refused("a triangle over rows")
    return Placement(dims)


@rule(aten.diag_embed.default)
def diag_embed(ctx: Context, node: fx.Node) -> Placement:
    """The last dimension as the diagonal of matrices."""
    source: Any = arguments(node)[0]
    one, two = (argument(node, 2 + i, f"dim{i + 1}", i - 2) for i in (0, 1))
    dims = ctx.dims(source)
    if dims[-1] or (one % (len(dims) + 1), two % (len(dims) + 1)) != (len(dims) - 1, len(dims)):
        raise Refused("a diagonal over rows")
    return Placement((*dims[:-1], (), ()))


@rule(aten.diagonal_scatter.default)
def diagonal_scatter(ctx: Context, node: fx.Node) -> Placement:
    """A diagonal overwritten in each row."""
    base: Any = arguments(node)[0]
    one, two = (argument(node, 3 + i, f"dim{i + 1}", i) % rank(base) for i in (0, 1))
    dims = ctx.dims(base)
    rest = tuple(d for i, d in enumerate(dims) if i not in (one, two))
    if dims[one] or dims[two] or ctx.dims(arguments(node)[1]) != (*rest, ()):
        raise Refused("a diagonal over rows")
    return Placement(dims)


@rule(aten.diagonal.default)
def diagonal(ctx: Context, node: fx.Node) -> Placement:
    source: Any = arguments(node)[0]
    one, two = (wrap(arguments(node)[i] if len(arguments(node)) > i else i - 2, source) for i in (2, 3))
    one, two = (one, two) if len(arguments(node)) > 2 else (0, 1)
    dims = ctx.dims(source)
    if dims[one] or dims[two]:
        raise Refused("a diagonal over rows")
    return Placement((*(d for i, d in enumerate(dims) if i not in (one, two)), ()))
