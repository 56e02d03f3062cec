"""Functions of torch that bake sizes in while they are traced, said in others that do not.

torch.tensor([a, n])      =>  stack([a, scalar_tensor(n)])     for tensors and sizes among the values
pad(x, (1, 2))            =>  cat([zeros, x, zeros], -1)
masked_select(x, mask)    =>  x[mask]
x[mask] = y               =>  x.masked_fill_(mask, 0).index_put_(mask.nonzero(as_tuple=True), y, accumulate=True)
x.index_reduce(0, i, y)   =>  x.scatter_reduce(0, i.reshape(-1, 1).expand_as(y), y)
x.scatter_add(0, i, y)    =>  the same, for as many i as there are y
triu_indices(n, n)        =>  (arange(n) - arange(n)[:, None] >= 0).nonzero().T
allclose(x, y)            =>  bool(isclose(x, y).all())        equal(x, y) likewise
var_mean(x, 1)            =>  var(x, 1), mean(x, 1)
det(a), 3 x 3             =>  a[0] . (a[1] x a[2])
x.data_ptr()              =>  something that is another one for each memory
gru_cell(x, h, weights)   =>  the products, sums and sigmoids that its documentation gives
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import segments, sparse_tensors

_TENSORS = (torch.tensor, torch.as_tensor, torch.asarray)
_PADS = (nn.functional.pad, torch._C._nn.pad, torch.constant_pad_nd)
_SELECTS = (torch.masked_select, Tensor.masked_select)
_REDUCES = (torch.index_reduce, Tensor.index_reduce, Tensor.index_reduce_)
_TRIANGLES = (torch.triu_indices, torch.tril_indices)
_TAKES = (torch.take_along_dim, Tensor.take_along_dim)
_DETERMINANTS = (torch.det, torch.linalg.det, Tensor.det)
_SCATTERS = tuple(
    getattr(space, name + suffix)
    for name in ("scatter_add", "scatter_reduce", "scatter")
    for space, suffix in ((torch, ""), (Tensor, ""), (Tensor, "_"))
)
_TRANSFORMS = tuple(getattr(torch.fft, name) for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"))
_ATTENTIONS = (nn.functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)


def substitute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """A replacement of a call of `function`, with the same result and gradients; None if the call may stay as it is."""
    if function in _TENSORS and args and _holds_symbols(args[0]):
        return lambda: _tensor(args[0], **kwargs)
    if function is Tensor.new_tensor and _holds_symbols(args[1]):
        return lambda: _tensor(args[1], **{"dtype": args[0].dtype, "device": args[0].device, **kwargs})
    if function in _PADS and kwargs.get("mode", "constant") == "constant" and len(args) < 3:
        return lambda: _padded(*args, **kwargs)
    if function in _SELECTS:
        return lambda: _selected(*args, **kwargs)
    if function in _REDUCES:
        return lambda: _reduced(function is Tensor.index_reduce_, *args, **kwargs)
    if function is Tensor.__getitem__ and _is_mask(args[1]):
        return lambda: args[0][args[1].nonzero(as_tuple=True)]
    if function is Tensor.__setitem__ and _is_mask(args[1]):
        return lambda: _written(*args)
    if function in _TAKES and len(args) + len(kwargs) == 3:
        return lambda: _taken(*args, **kwargs)
    if function in _SCATTERS and len(args) + len(kwargs) > 3:
        return lambda: _in_step(function, *args, **kwargs)
    if function in _TRIANGLES and any(isinstance(size, torch.SymInt) for size in (*args[:2], *kwargs.values())):
        return lambda: _triangle(function is torch.triu_indices, *args, **kwargs)
    if function in _DETERMINANTS and args and args[0].requires_grad and args[0].shape[-2:] == (3, 3):
        return lambda: _determinant(args[0])
    if function in _TRANSFORMS and (written := _transformed(function, *args, **kwargs)) is not None:
        return written
    if function in _ATTENTIONS:
        return lambda: attention(*args, **kwargs)
    if function is Tensor.data_ptr:
        return lambda: _address(args[0])
    if function is torch.complex:
        return lambda: _complex(*args, **kwargs)
    if function is torch.segment_reduce and kwargs.get("lengths") is not None and args[1:] == ("sum",):
        return lambda: _segments(args[0], **kwargs)
    if function is torch.gradient and len(args) == 1 and isinstance(kwargs.get("spacing", 1), int | float):
        return lambda: _gradient(*args, **kwargs)
    for library in (segments, sparse_tensors):
        if (instead := library.written_out(function, args, kwargs)) is not None:
            return instead
    for known, written_out in _WRITTEN_OUT:
        if function == known:
            return lambda: written_out(*args, **kwargs)
    return None


@dataclasses.dataclass(frozen=True)
class _Address:
    """Stands in for an address, which a traced tensor does not have: models ask if two tensors are one.

    It is not a number, so that no code can read from it.
    """

    storage: int
    offset: str


def _address(x: Tensor) -> Any:
    return _Address(x.untyped_storage()._cdata, str(x.storage_offset()))


def _holds_symbols(value: Any) -> bool:
    """True if values are symbolic numbers, or lists that hold symbolic numbers or tensors."""
    if isinstance(value, list | tuple):
        return any(isinstance(v, Tensor) or _holds_symbols(v) for v in value)
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _tensor(
    value: Any, *, dtype: torch.dtype | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    made = _stack(value, torch.get_default_device() if device is None else device)
    made = made.to(dtype=dtype) if dtype is not None else made
    return made.requires_grad_() if requires_grad else made


def _stack(value: Any, device: Any) -> Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_stack(v, device) for v in value])
    if isinstance(value, torch.SymInt | torch.SymFloat):
        number: Any = value
        dtype = torch.int64 if isinstance(value, torch.SymInt) else None
        return torch.scalar_tensor(number, dtype=dtype, device=device)
    return value.to(device) if isinstance(value, Tensor) else torch.tensor(value, device=device)


def _padded(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    for i in range(len(pad) // 2):
        dim = input.dim() - 1 - i
        before, after = pad[2 * i : 2 * i + 2]
        if before < 0 or after < 0:
            start, end = max(-before, 0), max(-after, 0)
            input = input.narrow(dim, start, input.shape[dim] - start - end)
        blocks = [input]
        for position, width in ((0, before), (2, after)):
            if width > 0:
                shape = [*input.shape[:dim], width, *input.shape[dim + 1 :]]
                blocks.insert(position, input.new_full(shape, 0 if value is None else value))
        input = torch.cat(blocks, dim) if len(blocks) > 1 else input
    return input


def _selected(input: Tensor, mask: Tensor) -> Tensor:
    rows, chosen = torch.broadcast_tensors(input, mask)
    return rows[chosen]


def _is_mask(index: Any) -> bool:
    """True if an index chooses single elements, or rows of a part of them."""
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 1


def _determinant(matrix: Tensor) -> Tensor:
    """The determinant by cofactors.

    Torch's gradient uses singular values, and has no gradient itself if two of them are equal.
    """
    one, two, three = matrix.unbind(-2)
    return (one * torch.linalg.cross(two, three)).sum(-1)


def _written(input: Tensor, mask: Tensor, values: Any) -> None:
    holes = mask.reshape(mask.shape + (1,) * (input.dim() - mask.dim()))
    if not isinstance(values, Tensor) or not values.dim():
        input.masked_fill_(holes, values)
        return
    chosen = mask.nonzero(as_tuple=True)
    input.masked_fill_(holes, 0).index_put_(chosen, values.to(input.dtype), accumulate=True)  # each place once


def _taken(input: Tensor, indices: Tensor, dim: int) -> Tensor:
    dim %= input.dim()

    def like(one: Tensor, other: Tensor) -> Tensor:
        n = max(input.dim(), 1)
        return one.expand([one.shape[d] if d == dim or other.shape[d] == 1 else other.shape[d] for d in range(n)])

    return like(input, indices).gather(dim, like(indices, input))


def _in_step(function: Any, input: Tensor, dim: int, index: Tensor, src: Any, *args: Any, **kwargs: Any) -> Any:
    """Scatter with an index that is as long as the scattered values in every graph, if it is in the example.

    Torch allows a shorter one.
    """
    for length, others in zip(index.shape, getattr(src, "shape", ()), strict=False):
        bool(length == others)
    return function(input, dim, index, src, *args, **kwargs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Fused attention written as products and a softmax: fused operators choose among themselves by sizes."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        nothing = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = nothing.masked_fill(~attn_mask, -math.inf)
    written_out = torch.ops.aten._scaled_dot_product_attention_math.default
    return written_out(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]  # type: ignore[no-any-return]


def _reduced(
    in_place: bool, input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    shape = [1] * source.dim()
    shape[dim] = -1
    each = index.long().reshape(shape).expand_as(source)
    scatter = input.scatter_reduce_ if in_place else input.scatter_reduce
    return scatter(dim, each, source, reduce, include_self=include_self)


def _transformed(
    function: Any, input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None, **kwargs: Any
) -> Callable[[], Tensor] | None:
    """A product with the matrix of a Fourier transform: torch follows the transform with the example's rows.

    None for one over rows, or of sizes that are fixed.
    """
    length = input.size(dim)
    if kwargs or not isinstance(length, int) or not any(isinstance(size, torch.SymInt) for size in input.size()):
        return None

    def product() -> Tensor:
        parts = [input.real, input.imag] if input.is_complex() else [input]  # it is linear in either
        rows = [part.movedim(dim, -1) for part in parts]
        matrices = [getattr(np.fft, function.__name__.removeprefix("fft_"))(unit, n, -1, norm) for unit in units]
        found: list[Any] = [
            sum(
                x @ torch.tensor(np.ascontiguousarray(part), dtype=x.dtype, device=x.device)
                for x, part in zip(rows, side, strict=True)
            )
            for side in ([m.real for m in matrices], [m.imag for m in matrices])
        ]
        real, imag = (part.movedim(-1, dim) for part in found)
        return _complex(real, imag) if np.iscomplexobj(matrices[0]) else real

    units = [np.eye(length) + 0j, 1j * np.eye(length)] if input.is_complex() else [np.eye(length)]
    return product


def _triangle(
    is_upper: bool,
    row: Any,
    col: Any,
    offset: int = 0,
    *,
    dtype: torch.dtype = torch.int64,
    device: Any = None,
    **_: Any,
) -> Tensor:
    right = torch.arange(col, device=device) - torch.arange(row, device=device)[:, None]
    return (right >= offset if is_upper else right <= offset).nonzero().T.to(dtype)


def _complex(real: Tensor, imag: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack(torch.broadcast_tensors(real, imag), -1))


def _segments(data: Tensor, *, lengths: Tensor, axis: int = 0, unsafe: bool = False, initial: Any = None) -> Tensor:
    rows = torch.arange(lengths.shape[0], device=lengths.device)
    where = torch.repeat_interleave(rows, lengths, output_size=data.shape[axis])
    shape = [*data.shape[:axis], lengths.shape[0], *data.shape[axis + 1 :]]
    return data.new_full(shape, initial or 0).index_add(axis, where, data)


def _polar(abs: Tensor, angle: Tensor) -> Tensor:
    return _complex(abs * angle.cos(), abs * angle.sin())


def _softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where(input > lambd, input - lambd, torch.where(input < -lambd, input + lambd, 0 * input))


def _hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where(input.abs() <= lambd, 0 * input, input)


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    if training:
        lower_, upper_ = torch.full_like(input, lower), torch.full_like(input, upper)
        return torch.where(input >= 0, input, input * torch.lerp(lower_, upper_, torch.rand_like(input)))
    return nn.functional.leaky_relu(input, (lower + upper) / 2)


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    one, two = (x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps) for x in (x1, x2))
    return (one * two).sum(dim)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return result if bias is None else result + bias


def _kron(input: Tensor, other: Tensor) -> Tensor:
    ndim = max(input.dim(), other.dim())
    one, two = ([1] * (ndim - x.dim()) + list(x.shape) for x in (input, other))
    left = input.reshape([n for size in one for n in (size, 1)])
    right = other.reshape([n for size in two for n in (1, size)])
    return (left * right).reshape([m * n for m, n in zip(one, two, strict=True)])


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    width = math.prod(input.shape[1:]) // num_groups
    groups = nn.functional.layer_norm(input.reshape(input.shape[0], num_groups, width), (width,), eps=eps)
    result, ones = groups.reshape(input.shape), [1] * (input.dim() - 2)
    result = result if weight is None else result * weight.reshape(-1, *ones)
    return result if bias is None else result + bias.reshape(-1, *ones)


def _gates(
    input: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> tuple[Tensor, Tensor]:
    return nn.functional.linear(input, w_ih, b_ih), nn.functional.linear(hidden, w_hh, b_hh)


def _gru_cell(input: Tensor, hidden: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None) -> Tensor:
    one, two = _gates(input, hidden, w_ih, w_hh, b_ih, b_hh)
    width = hidden.shape[-1]
    reset, update = torch.sigmoid(one[..., : 2 * width] + two[..., : 2 * width]).split(width, -1)
    new = torch.tanh(one[..., 2 * width :] + reset * two[..., 2 * width :])
    return new + update * (hidden - new)


def _lstm_cell(
    input: Tensor, state: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
) -> tuple[Tensor, Tensor]:
    hidden, cell = state
    one, two = _gates(input, hidden, w_ih, w_hh, b_ih, b_hh)
    take, forget, new, give = (one + two).split(hidden.shape[-1], -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell


def _allclose(input: Tensor, other: Tensor, *args: Any, **kwargs: Any) -> bool:
    return bool(torch.isclose(input, other, *args, **kwargs).all())


def _equal(input: Tensor, other: Tensor) -> bool:
    return input.shape == other.shape and bool((input == other).all())


def _var_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return torch.var(input, *args, **kwargs), _mean_beside(input, *args, **kwargs)


def _std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return torch.std(input, *args, **kwargs), _mean_beside(input, *args, **kwargs)


def _mean_beside(input: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    every = dim is None or isinstance(dim, bool)  # a boolean as the first argument is `unbiased`
    return input.mean() if every else input.mean(dim, keepdim=keepdim)


def _block_diag(*tensors: Tensor) -> Tensor:
    blocks = [torch.atleast_2d(t) for t in tensors]
    width = sum(b.shape[1] for b in blocks)
    lines, before = [], 0
    for block in blocks:
        after = width - before - block.shape[1]
        lines.append(_padded(block, (before, after)))
        before += block.shape[1]
    return torch.cat(lines)


def _gradient(input: Tensor, *, spacing: float = 1.0, dim: Any = None, edge_order: int = 1) -> tuple[Tensor, ...]:
    dims = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    return tuple(_slope(input, d, edge_order) / spacing for d in dims)


def _slope(input: Tensor, dim: int, edge_order: int) -> Tensor:
    """Central differences; at the ends, one-sided ones of first or second order."""

    def at(first: int, last: int) -> Tensor:
        return input.narrow(dim, first % n, (last - first) % n + 1)

    n = input.shape[dim]
    start, end = at(1, 1) - at(0, 0), at(-1, -1) - at(-2, -2)
    if edge_order == 2:
        start, end = 1.5 * start - 0.5 * (at(2, 2) - at(1, 1)), 1.5 * end - 0.5 * (at(-2, -2) - at(-3, -3))
    return torch.cat([start, (at(2, -1) - at(0, -3)) / 2, end], dim)


_WRITTEN_OUT: tuple[tuple[Any, Callable[..., Any]], ...] = (
    (torch.allclose, _allclose),
    (Tensor.allclose, _allclose),
    (torch.equal, _equal),
    (Tensor.equal, _equal),
    (torch.var_mean, _var_mean),
    (torch.std_mean, _std_mean),
    (torch.block_diag, _block_diag),
    (torch.polar, _polar),
    (nn.functional.softshrink, _softshrink),
    (nn.functional.hardshrink, _hardshrink),
    (torch.rrelu, _rrelu),
    (nn.functional.rrelu, _rrelu),
    (nn.functional.cosine_similarity, _cosine_similarity),
    (nn.functional.bilinear, _bilinear),
    (torch.cdist, _cdist),
    (torch.kron, _kron),
    (nn.functional.group_norm, _group_norm),
    (torch.gru_cell, _gru_cell),
    (torch.lstm_cell, _lstm_cell),
)
