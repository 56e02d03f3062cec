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
    return None


def _holds_symbols(value: Any) -> bool:
    """Whether values are symbolic numbers or hold them, or are lists of tensors."""
    if isinstance(value, list | tuple):
        return any(isinstance(v, Tensor) or _holds_symbols(v) for v in value)
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _tensor(
    value: Any, *, dtype: torch.dtype | None = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Tensor:
    to = {name: v for name, v in (("dtype", dtype), ("device", device)) if v is not None}
    made = _stack(value).to(**to) if to else _stack(value)
    return made.requires_grad_() if requires_grad else made


def _stack(value: Any) -> Tensor:
    if isinstance(value, list | tuple):
        return torch.stack([_stack(v) for v in value])
    if isinstance(value, torch.SymInt | torch.SymFloat):
        return torch.scalar_tensor(value, dtype=torch.int64 if isinstance(value, torch.SymInt) else None)
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
