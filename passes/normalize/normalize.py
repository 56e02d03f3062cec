"""Say the same thing in one way.

    x[mask]                               =>  index_select(x, 0, nonzero(mask))    a mask is a pointer like any other
    index_add(t, 0, k, x)                 =>  t + index_add(zeros(5, 3), 0, k, x)    t of fixed length, on every rank
    x[arange(n), k]                       =>  gather(x, 1, k[:, None]).squeeze(1)    an element of each row
    s[mask] = 0.0                         =>  where(mask, 0, s)
    x[arange(n), k] = 0.0                 =>  where(k[:, None] == arange(3), 0, x)
    x[c] = u                              =>  index_add(where(written, 0, x), 0, c, u)    written: where c points
    scatter_reduce(s, 0, p, w, "sum")     =>  scatter_add(s, 0, p, w)
    scatter_reduce(s, 0, p, w, "mean")    =>  scatter_add(s, 0, p, w) / count     count = how many went into each row
    index_put(x, [p], y[p], True)         =>  index_add(x, 0, p, y[p])
    scatter_add(x, 0, p[:, None].expand(v.shape), v)  =>  index_add(x, 0, p, v)
    gather(x, 0, p[:, None].expand(v.shape))  =>  index_select(x, 0, p)
    arange(n, float)                      =>  arange(n).to(float)
    conj(view_as_complex(z)) * s          =>  conj_physical(complex(z[..., 0], z[..., 1])) * s
    mean(x, 0)                            =>  sum(x, 0) / n                       of all ranks; more in `reductions`
    split(w, l)[1]                        =>  w[l : 2 * l]                        as many where there is no row
    zeros_like(x)                         =>  full([n, 3], 0.0)                   of x nothing but its sizes is needed
    x.new_zeros(n, 64)                    =>  full([n, 64], 0.0)

x and s are of n atoms, v and w of edges, and p points from edges to atoms. Later passes then know only gathers,
scatters that add or compare, and sums.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...ir import Normal, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import filled_with, is_zero, operators, row_numbers
from ...ir.writer import Writer, ndim
from ...rules.base import arguments
from ...runtime.operators.checks import distinct_rows
from .padded_rows import padded_gradient, part_of_padded, selected_from_padded
from .reductions import REDUCTIONS
from .rows_by_number import ROWS_BY_NUMBER
from .rows_within_rows import added_within_rows, selected_within_rows

aten = torch.ops.aten

WITHOUT_SELF = "distcompile_without_self"
"""Key in ``node.meta`` of a scatter whose result does not count the table's own rows where something is written to
them. If such a row was as large as the result, torch still gives it a share of the gradient, which is lost."""


def normalize(program: Normal) -> Normal:
    """Return `program` in the smaller vocabulary."""
    module, _ = copy_graph(program.graph)
    for node in list(module.graph.nodes):
        rewrite = _REWRITES.get(node.target)
        if rewrite is None:
            continue
        with module.graph.inserting_before(node):
            result = rewrite(Writer(module.graph, node), node)
        if result is not None:
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
    return replace_graph(program, module)


def _mask_to_pointer(write: Writer, mask: fx.Node, count: Any) -> fx.Node:
    """The rows where a mask over one dimension is true; `count` is their number."""
    fake: Tensor = mask.meta["val"]
    found = write(aten.nonzero.default, mask, value=fake.new_empty([count, 1], dtype=torch.int64))
    return write(aten.select.int, found, 1, 0)


def _one_index(node: fx.Node) -> tuple[int, fx.Node] | None:
    """The only index of ``x[:, p]`` and its dimension; None if `node` is of another form."""
    indices: Any = node.args[1]
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    return given[0] if len(given) == 1 and given[0][1].meta["val"].dim() == 1 else None


def _is_mask(node: fx.Node) -> bool:
    return node.meta["val"].dtype == torch.bool


def _row_by_row(node: fx.Node) -> fx.Node | None:
    """k of ``x[arange(n), k]``, an element of each of the n rows of x; None if `node` is of another form."""
    table: Any = node.args[0]
    indices: Any = node.args[1]
    if len(indices) != 2 or None in indices or table.meta["val"].dim() != 2:
        return None
    rows, columns = indices
    return columns if _is_every_row(rows, table) and columns.meta["val"].dim() == 1 else None


def _is_every_row(rows: fx.Node, table: fx.Node) -> bool:
    """True if an index is ``arange(n)`` for the n rows of a table."""
    return row_numbers(rows) == (0, 1) and str(rows.meta["val"].shape[0]) == str(table.meta["val"].shape[0])


def _repeat(write: Writer, node: fx.Node) -> fx.Node | None:
    """One row, repeated as often as there are rows of something; None if more than one row is repeated."""
    args: Any = node.args
    source, times = args
    new = len(times) - ndim(source)
    sizes = [1] * new + list(source.meta["val"].shape)
    if any(n != 1 and i >= new and str(k) != "1" for i, (n, k) in enumerate(zip(sizes, times, strict=True))):
        return None
    kept = [k if n == 1 else write.size(source, i - new) for i, (n, k) in enumerate(zip(sizes, times, strict=True))]
    return write(aten.expand.default, source, kept)


def _one_column(write: Writer, columns: fx.Node) -> fx.Node:
    """The column number of each row, as the index of a gather along dimension 1."""
    return write(aten.unsqueeze.default, write(aten._to_copy.default, columns, dtype=torch.int64), 1)


def _index_select(write: Writer, node: fx.Node) -> fx.Node | None:
    given = arguments(node)[:3]
    return selected_from_padded(write, node, *given) or selected_within_rows(write, node, *given)


def _index(write: Writer, node: fx.Node) -> fx.Node | None:
    columns = _row_by_row(node)
    if columns is not None:
        index = _one_column(write, columns)
        return write(aten.squeeze.dim, write(aten.gather.default, node.args[0], 1, index), 1)
    found = _one_index(node)
    if found is None:
        matrix = _matrix_index(node)
        found = (0, matrix) if matrix is not None else None
    if found is None:
        return None
    dim, mask = found
    if not _is_mask(mask):
        given = (node.args[0], dim, mask)
        return selected_from_padded(write, node, *given) or selected_within_rows(write, node, *given)
    return write(
        aten.index_select.default, node.args[0], dim, _mask_to_pointer(write, mask, node.meta["val"].shape[dim])
    )


def _matrix_index(node: fx.Node) -> fx.Node | None:
    """The only index of ``x[p]``, which may have several dimensions; None if `node` is of another form."""
    indices: Any = node.args[1]
    (first, *more) = indices
    return first if first is not None and not more and not _is_mask(first) else None


def _slice(write: Writer, node: fx.Node) -> fx.Node | None:
    return part_of_padded(write, node) or ROWS_BY_NUMBER[aten.slice.Tensor](write, node)


def _slice_backward(write: Writer, node: fx.Node) -> fx.Node | None:
    return padded_gradient(write, node) or ROWS_BY_NUMBER[aten.slice_backward.default](write, node)


def _masked_select(write: Writer, node: fx.Node) -> fx.Node | None:
    table, mask = node.args
    if not isinstance(mask, fx.Node) or mask.meta["val"].dim() != 1:
        return None
    return write(aten.index_select.default, table, 0, _mask_to_pointer(write, mask, node.meta["val"].shape[0]))


def _written_by_row(write: Writer, node: fx.Node) -> fx.Node | None:
    """``x[arange(n), :, k] = v`` for a number v: an element of each row, found by comparison."""
    args: Any = node.args
    base, indices, values = args[:3]
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 2 or given[0][0] != 0 or values.meta["val"].dim() or (len(args) > 3 and args[3]):
        return None
    (_, rows), (dim, columns) = given
    width, n = base.meta["val"].shape[dim], ndim(base)
    if not _is_every_row(rows, base) or columns.meta["val"].dim() != 1 or not isinstance(width, int):
        return None
    own = write(aten.reshape.default, columns, [write.size(columns, 0), *[1] * (n - 1)])
    numbers = write(aten.arange.default, width, dtype=torch.int64, device=columns.meta["val"].device)
    each = write(aten.reshape.default, numbers, [width if i == dim else 1 for i in range(n)])
    chosen = write(aten.eq.Tensor, write(aten.remainder.Scalar, own, width), each)
    return write(aten.where.self, chosen, values, base)


def _index_put(write: Writer, node: fx.Node) -> fx.Node | None:
    base: Any = node.args[0]
    values: Any = node.args[2]
    written = _written_by_row(write, node)
    if written is not None:
        return written
    columns = _row_by_row(node)
    if columns is not None and len(node.args) > 3 and node.args[3] and values.meta["val"].dim() == 1:
        index = _one_column(write, columns)
        return write(aten.scatter_add.default, base, 1, index, write(aten.unsqueeze.default, values, 1))
    accumulate = len(node.args) > 3 and bool(node.args[3])
    found = _one_index(node)
    if found is None and not accumulate and (places := _places(node)) is not None and is_zero(base):
        rows, columns = places
        return write(aten.index_put.default, base, [rows, write(distinct_rows, columns, rows)], values, True)
    if found is None:
        matrix = _matrix_index(node)
        if matrix is not None and accumulate:
            return added_within_rows(write, base, 0, matrix, values)
        return _added_by_several(write, node) if accumulate else None
    dim, index = found
    constant = not accumulate and _is_one_row(values, base, dim)
    if _is_mask(index):
        if constant:
            return _where(write, base, dim, index, values)
        own = values.meta["val"].dim() - base.meta["val"].dim() + dim  # values may lack the first dimensions
        if own < 0:
            return None
        index = _mask_to_pointer(write, index, values.meta["val"].shape[own])
    elif accumulate:
        return _as_index_add(write, base, dim, index, values)
    else:
        index = write(aten._to_copy.default, index, dtype=torch.int64)
        if not constant:
            index = write(distinct_rows, index)
    if not accumulate:
        unwritten = write(
            aten.full.default, [write.size(base, dim)], False, dtype=torch.bool, device=base.meta["val"].device
        )
        written = write(aten.index_fill.int_Scalar, unwritten, 0, index, True)
        base = _where(write, base, dim, written, values if constant else 0)
        if constant:
            return base
    added = _as_index_add(write, base, dim, index, values)
    return added or write(aten.index_put.default, base, [*[None] * dim, index], values, True)


def _places(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """i and k of ``x[i, k] = v``: a list of rows, and a column of each; None if `node` is of another form."""
    indices: Any = node.args[1]
    if len(indices) != 2 or any(i is None or i.meta["val"].dim() != 1 or _is_mask(i) for i in indices):
        return None
    rows, columns = indices
    return (rows, columns) if all(i.op != "get_attr" for i in indices) else None


def _is_one_row(values: fx.Node, base: fx.Node, dim: int) -> bool:
    """True if values that are written to rows of dimension `dim` are the same for all rows: a number, or one row."""
    shape = values.meta["val"].shape
    own = len(shape) - (ndim(base) - dim)  # values may lack the first dimensions
    return own < 0 or str(shape[own]) == "1"


def _as_index_add(write: Writer, base: fx.Node, dim: int, index: fx.Node, values: fx.Node) -> fx.Node | None:
    """An accumulating index_put with one index is an index_add, which is several times faster."""
    if values.meta["val"].dim() != base.meta["val"].dim() or index.meta["val"].dtype not in (torch.int32, torch.int64):
        return None
    shapes = [v.meta["val"].shape for v in (values, base)]
    if any(str(a) != str(b) for i, (a, b) in enumerate(zip(*shapes, strict=True)) if i != dim):
        return None  # broadcast values
    if str(shapes[0][dim]) != str(index.meta["val"].shape[0]):
        return None
    return added_within_rows(write, base, dim, index, values) or _index_add(write, base, dim, index, values)


def _where(write: Writer, base: fx.Node, dim: int, rows: fx.Node, value: Any) -> fx.Node:
    """`base` with `value` in the rows of a mask over dimension `dim`."""
    ndim = base.meta["val"].dim()
    mask = rows
    for _ in range(ndim - dim - 1):
        mask = write(aten.unsqueeze.default, mask, -1)
    if not isinstance(value, fx.Node):
        value = write(aten.full.default, [], value, dtype=base.meta["val"].dtype, device=base.meta["val"].device)
    return write(aten.where.self, mask, value, base)


def _scatter_reduce(write: Writer, node: fx.Node) -> fx.Node | None:
    base, dim, index, source, how = arguments(node)[:5]
    include = node.kwargs.get("include_self", node.args[5] if len(node.args) > 5 else True)
    if how not in ("sum", "mean") and include:
        return None
    count = _scatter_add(write, write.filled(base, 0), dim, index, write.filled(source, 1))
    if not include:
        neutral = {"sum": 0.0, "mean": 0.0, "amax": float("-inf"), "amin": float("inf")}.get(str(how))
        if neutral is None:
            return None
        touched = write(aten.gt.Scalar, count, 0)
        base = write(aten.where.self, touched, write.filled(base, neutral), base)
        if how not in ("sum", "mean"):
            found = write(aten.scatter_reduce.two, base, dim, index, source, how)
            found.meta[WITHOUT_SELF] = True
            return found
    if is_zero(base) or isinstance(base.meta["val"].shape[dim], torch.SymInt):
        total = _scatter_add(write, base, dim, index, source)
    else:  # as of `_added`
        total = write(aten.add.Tensor, base, _scatter_add(write, write.filled(base, 0), dim, index, source))
    if how == "sum":
        return total
    count = write(aten.add.Tensor, count, 1) if include else write(aten.clamp_min.default, count, 1)
    return write(aten.div.Tensor, total, count)


def _split(write: Writer, node: fx.Node) -> None:
    """Split into pieces of a number of rows that the graph gives: a rank without rows has the same number of pieces."""
    source, length, dim = (*node.args, 0)[:3]
    if not isinstance(length, fx.Node):
        return
    pieces = node.meta["val"]
    for piece in list(node.users):
        i: Any = piece.args[1]
        start, end = (write(operator.mul, length, k, value=length.meta["val"] * k) if k else 0 for k in (i, i + 1))
        end = end if i + 1 < len(pieces) else 2**63 - 1
        piece.replace_all_uses_with(write(aten.slice.Tensor, source, dim, start, end, value=pieces[i]))


def _created(write: Writer, node: fx.Node) -> fx.Node:
    """``zeros_like(x)``, ``x.new_zeros(...)`` and their kin need only sizes of x, which may be partial or not kept."""
    given: Any = node.args[0]
    if isinstance(given, fx.Node):
        sizes = node.args[1] if "new_" in str(node.target) else [write.size(given, d) for d in range(ndim(given))]
    else:
        sizes = given
    value = node.meta["val"]
    return write(aten.full.default, sizes, filled_with(node), value=value, dtype=value.dtype, device=value.device)


def _done_at_once(write: Writer, node: fx.Node) -> Any:
    """Compute conjugates and negatives at once.

    Torch notes them on a view, and other ranks would not be told of the note.
    """
    (given,) = node.args
    if isinstance(given, complex):
        return given.conjugate() if node.target is aten._conj.default else -given
    return write(aten.conj_physical.default if node.target is aten._conj.default else aten.neg.default, given)


def _complex(write: Writer, node: fx.Node) -> fx.Node:
    """Complex numbers, made from their parts. A view asks for strides that a copy has, but the original has not."""
    real, imag = (write(aten.select.int, node.args[0], -1, part) for part in (0, 1))
    return write(aten.complex.default, real, imag, value=node.meta["val"])


def _counted(write: Writer, node: fx.Node) -> fx.Node | None:
    """Row numbers as real numbers: first the row numbers of the whole graph, then their cast."""
    value = node.meta["val"]
    given = [n.meta["val"] if isinstance(n, fx.Node) else n for n in node.args]
    if not value.is_floating_point() or not all(isinstance(n, int | torch.SymInt) for n in given):
        return None
    whole = write(node.target, *node.args, value=value.new_empty(value.shape, dtype=torch.int64), device=value.device)
    return write(aten._to_copy.default, whole, dtype=value.dtype)


def _added(write: Writer, node: fx.Node) -> fx.Node | None:
    """A sum into a table of fixed length that is not zero. Ranks sum into zeros, and the table is added once."""
    base, dim, index, source = arguments(node)[:4]
    if is_zero(base) or isinstance(base.meta["val"].shape[dim], torch.SymInt):
        if node.target is aten.scatter_add.default:
            return _scatter_add(write, base, dim, index, source)
        return None if "alpha" in node.kwargs else added_within_rows(write, base, dim, index, source)
    scale = node.kwargs.get("alpha", 1)
    if scale != 1:
        source = write(aten.mul.Scalar, source, scale)
    add = _scatter_add if node.target is aten.scatter_add.default else _index_add
    return write(aten.add.Tensor, base, add(write, write.filled(base, 0), dim, index, source))


def _added_by_several(write: Writer, node: fx.Node) -> fx.Node | None:
    """The same for several indices that together give the element."""
    base: Any = node.args[0]
    if is_zero(base):
        return None
    return write(aten.add.Tensor, base, write(aten.index_put.default, write.filled(base, 0), *node.args[1:]))


def _embedding_backward(write: Writer, node: fx.Node) -> fx.Node | None:
    """The gradient of a table that rows look up: gradients are summed where the rows point, but not for padding."""
    gradient, rows, length, padding, by_frequency = arguments(node)
    if by_frequency or not isinstance(length, int):
        return None
    n, width = ndim(rows), gradient.meta["val"].shape[-1]
    if n != 1:
        count = write(aten.sym_numel.default, rows, value=rows.meta["val"].numel())
        rows = write(aten.reshape.default, rows, [count])
        gradient = write(aten.reshape.default, gradient, [count, width])
    if padding >= 0:
        kept = write(aten.unsqueeze.default, write(aten.ne.Scalar, rows, padding), -1)
        gradient = write(aten.where.self, kept, gradient, write.filled(gradient, 0))
    value = node.meta["val"]
    table = write(aten.full.default, [length, width], 0, dtype=value.dtype, device=value.device)
    return write(aten.index_add.default, table, 0, rows, gradient)


def _index_add(write: Writer, base: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> fx.Node:
    return write(aten.index_add.default, base, dim, index, source)


def _scatter_add(write: Writer, base: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> fx.Node:
    """Add rows whole if the index is the same for all elements of a row, else element by element."""
    rows = _row_numbers(write, dim, index, base) if _are_alike(dim, index, source) else None
    if rows is not None:
        return _index_add(write, base, dim, rows, source)
    return write(aten.scatter_add.default, base, dim, index, source)


def _gather(write: Writer, node: fx.Node) -> fx.Node | None:
    base, dim, index = arguments(node)[:3]
    rows = _row_numbers(write, dim, index, base)
    if rows is None:
        return None
    padded = selected_from_padded(write, node, base, dim % ndim(base), rows)
    return padded or write(aten.index_select.default, base, dim, rows)


def _row_numbers(write: Writer, dim: int, index: fx.Node, table: fx.Node) -> fx.Node | None:
    """The row numbers of an index by element that repeats one number for all elements of a row; None for others."""
    if index.target not in (aten.expand.default, aten.repeat.default) or not _are_alike(dim, index, table, False):
        return None
    rows: Any = index.args[0]
    given, asked = rows.meta["val"].shape, index.meta["val"].shape
    missing, dim = len(asked) - len(given), dim % len(asked)
    alike = [i >= missing and str(given[i - missing]) == str(n) for i, n in enumerate(asked)]
    wide = [i >= missing and str(given[i - missing]) != "1" for i in range(len(asked))]
    if not alike[dim] or any(is_wide for i, is_wide in enumerate(wide) if i != dim):
        return None
    return write(aten.reshape.default, rows, [write.size(rows, dim - missing)])


def _are_alike(dim: int, one: fx.Node, two: fx.Node, with_dim: bool = True) -> bool:
    """True if two tensors have the same sizes; with `with_dim` False, dimension `dim` may differ."""
    a, b = (node.meta["val"].shape for node in (one, two))
    pairs = list(zip(a, b, strict=True)) if len(a) == len(b) else []
    return bool(pairs) and all(str(m) == str(n) for i, (m, n) in enumerate(pairs) if with_dim or i != dim % len(a))


_REWRITES = {
    **dict.fromkeys((t for t in operators(lambda f: f.fill is not None) if t is not aten.full.default), _created),
    **dict.fromkeys(operators(lambda f: f.progression is not None and f.progression.step is not None), _counted),
    aten.view_as_complex.default: _complex,
    **dict.fromkeys((aten._conj.default, aten._neg_view.default), _done_at_once),
    aten.index_add.default: _added,
    aten.scatter_add.default: _added,
    aten.gather.default: _gather,
    aten.index_select.default: _index_select,
    aten.repeat.default: _repeat,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.index_put.default: _index_put,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.split.Tensor: _split,
    aten.embedding_dense_backward.default: _embedding_backward,
    **REDUCTIONS,
    **ROWS_BY_NUMBER,
    aten.slice.Tensor: _slice,
    aten.slice_backward.default: _slice_backward,
}
