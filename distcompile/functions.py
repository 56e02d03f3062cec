"""Functions of torch that bake sizes in while they are traced, said in others that do not.

torch.tensor([a, n])      =>  stack([a, scalar_tensor(n)])     for tensors and sizes among the values
pad(x, (1, 2))            =>  cat([zeros, x, zeros], -1)
masked_select(x, mask)    =>  x[mask]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_TENSORS = (torch.tensor, torch.as_tensor, torch.asarray)
_PADS = (nn.functional.pad, torch._C._nn.pad, torch.constant_pad_nd)
_SELECTS = (torch.masked_select, Tensor.masked_select)
_TAKES = (torch.take_along_dim, Tensor.take_along_dim)


def substitute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """What computes the same as a call of `function`, with the gradients; None if the call may stay as it is."""
    if function in _TENSORS and args and _holds_symbols(args[0]):
        return lambda: _tensor(args[0], **kwargs)
    if function is Tensor.new_tensor and _holds_symbols(args[1]):
        return lambda: _tensor(args[1], **{"dtype": args[0].dtype, "device": args[0].device, **kwargs})
    if function in _PADS and kwargs.get("mode", "constant") == "constant" and len(args) < 3:
        return lambda: _padded(*args, **kwargs)
    if function in _SELECTS:
        return lambda: _selected(*args, **kwargs)
    if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and _is_mask(args[1]):
        return lambda: args[0][args[1].nonzero(as_tuple=True)]
    if function in _TAKES and len(args) + len(kwargs) == 3:
        return lambda: _taken(*args, **kwargs)
    if function is torch.complex:
        return lambda: _complex(*args, **kwargs)
    if function is torch.segment_reduce and kwargs.get("lengths") is not None and args[1:] == ("sum",):
        return lambda: _segments(args[0], **kwargs)
    return None


def _holds_symbols(value: Any) -> bool:
    """Whether values are symbolic numbers or hold them, or are lists of tensors."""
    if isinstance(value, list | tuple):
        return any(isinstance(v, Tensor) or _holds_symbols(v) for v in value)
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _tensor(
    value: Any, *, dtype: torch.dtype | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    made = _stack(value)
    made = made.to(dtype=dtype) if dtype is not None else made
    made = made.to(device=device) if device is not None else made
    return made.requires_grad_() if requires_grad else made


def _stack(value: Any) -> Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_stack(v) for v in value])
    if isinstance(value, torch.SymInt | torch.SymFloat):
        number: Any = value
        return torch.scalar_tensor(number, dtype=torch.int64 if isinstance(value, torch.SymInt) else None)
    return value if isinstance(value, Tensor) else torch.tensor(value)


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


def _is_mask(index: Tensor) -> bool:
    """Whether an index chooses single elements, or rows of a part of them."""
    return index.dtype == torch.bool and index.dim() > 1


def _taken(input: Tensor, indices: Tensor, dim: int) -> Tensor:
    dim %= input.dim()

    def like(one: Tensor, other: Tensor) -> Tensor:
        n = max(input.dim(), 1)
        return one.expand([one.shape[d] if d == dim or other.shape[d] == 1 else other.shape[d] for d in range(n)])

    return like(input, indices).gather(dim, like(indices, input))


def _complex(real: Tensor, imag: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack(torch.broadcast_tensors(real, imag), -1))


def _segments(data: Tensor, *, lengths: Tensor, axis: int = 0, unsafe: bool = False, initial: Any = None) -> Tensor:
    where = torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths, output_size=data.shape[axis])
    shape = [*data.shape[:axis], lengths.shape[0], *data.shape[axis + 1 :]]
    return data.new_full(shape, initial or 0).index_add(axis, where, data)
