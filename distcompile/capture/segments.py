"""The compiled operators of ``torch_scatter``, said in torch's own: torch follows no shapes through them.

segment_sum_coo(src, index)      =>  index_add(zeros, dim, index, src)               index: ascending
segment_sum_csr(src, offsets)    =>  the same, index = repeat_interleave(arange(n), offsets.diff())
scatter_max(src, index, dim)     =>  scatter_reduce(zeros, dim, index, src, "amax"), and the first row that has it
gather_coo(src, index)           =>  index_select(src, dim, index)

Where several rows are largest they share the gradient, as in torch, while ``torch_scatter`` gives it to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = "torch_scatter"
_HOW = {"sum": "sum", "mean": "mean", "mul": "prod", "min": "amin", "max": "amax"}


def written_out(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """A replacement of a call of an operator of the library, with the same result; None for other operators."""
    namespace, _, name = getattr(function, "_qualified_op_name", str(function).replace(".", "::")).partition("::")
    if namespace != _LIBRARY:
        return None
    kind, how, *form = name.removesuffix(".default").split("_")
    if kind == "gather":
        return lambda: _gathered(how, *args, **kwargs)
    if kind == "scatter" and how in _HOW:
        return lambda: _scattered(how, *args, **kwargs)
    if kind == "segment" and how in _HOW:
        return lambda: _segments(how, form[0], *args, **kwargs)
    return None


def _scattered(
    how: str, src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Any:
    dim %= src.dim()
    if index.dim() == 1:
        index = index.reshape([-1 if d == dim else 1 for d in range(src.dim())])
    return _reduced(how, src, index.expand_as(src), dim, out, dim_size)


def _segments(
    how: str, form: str, src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None
) -> Any:
    dim = index.dim() - 1
    if form == "csr":
        index, dim_size = _by_row(src, index), index.shape[-1] - 1
    each = index.reshape(*index.shape, *[1] * (src.dim() - index.dim())).expand_as(src)
    return _reduced(how, src, each, dim, out, dim_size)


def _by_row(src: Tensor, offsets: Tensor) -> Tensor:
    """The number of its segment for each row, for one list of segments."""
    if offsets.dim() > 1:
        raise NotImplementedError("segments by offsets, other ones for each row of another dimension")
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(lengths.shape[0], device=src.device), lengths, output_size=src.shape[0])


def _gathered(form: str, src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    dim = index.dim() - 1
    if form == "csr":
        lengths = index[1:] - index[:-1]
        index = torch.repeat_interleave(torch.arange(lengths.shape[0], device=src.device), lengths)
    if index.dim() == 1:
        return src.index_select(0, index)
    shape = [*src.shape[:dim], index.shape[dim], *src.shape[dim + 1 :]]
    return src.gather(dim, index.reshape(*index.shape, *[1] * (src.dim() - index.dim())).expand(shape))


def _reduced(how: str, src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Any:
    if out is None:
        length = dim_size if dim_size is not None else int(index.max()) + 1
        shape = [*src.shape[:dim], length, *src.shape[dim + 1 :]]
        out = src.new_ones(shape) if how == "mul" else src.new_zeros(shape)
    found = out.scatter_reduce(dim, index, src, _HOW[how], include_self=how in ("sum", "mul"))
    if how not in ("min", "max"):
        return found
    rows = torch.arange(src.shape[dim], device=src.device).reshape([-1 if d == dim else 1 for d in range(src.dim())])
    nowhere = torch.full_like(index, src.shape[dim])
    candidates = torch.where(src == found.gather(dim, index), rows.expand_as(src), nowhere)
    first = torch.full_like(found, src.shape[dim], dtype=torch.int64).scatter_reduce(dim, index, candidates, "amin")
    return found, first
