"""Elements put into other tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .....runtime.operators.halo import stop_gradient
from ..values import Builder, Value, known
from .registry import handles

aten = torch.ops.aten


@handles(aten.slice_backward.default)
def _slice_backward(f: Builder, dtype: torch.dtype, g: Any, size: Any, dim: int, *part: int) -> Value:
    zeros = torch.full(tuple(size), f.zero)
    return Value(aten.slice_scatter.default(zeros, f.value(g).elements, dim, *part), dtype)


@handles(aten.select_backward.default)
def _select_backward(f: Builder, dtype: torch.dtype, g: Any, size: Any, dim: int, index: int) -> Value:
    zeros = torch.full(tuple(size), f.zero)
    return Value(aten.select_scatter.default(zeros, f.value(g).elements, dim, index), dtype)


@handles(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(f: Builder, dtype: torch.dtype, into: Any, part: Any, *where: int) -> Value:
    into, part = f.value(into).elements, f.value(part).elements
    # Which of the two it is shows in the number of dimensions.
    run = aten.slice_scatter.default if into.dim() == part.dim() else aten.select_scatter.default
    return Value(run(into, part, *where), dtype)


@handles(aten.copy.default)
def _copy(f: Builder, dtype: torch.dtype, into: Any, source: Any, *_: Any) -> Value:
    shape = f.value(into).elements.shape
    return Value(torch.from_numpy(f.cast(f.value(source), dtype)).expand(shape), dtype)


@handles(aten.empty.memory_format)
def _empty(f: Builder, dtype: torch.dtype, size: Any) -> Value:
    return Value(torch.full(tuple(size), f.zero), dtype)


@handles(aten.scalar_tensor.default)
def _scalar_tensor(f: Builder, dtype: torch.dtype, value: Any) -> Value:
    return Value(torch.from_numpy(f.cast(f.value(value), dtype)), dtype)


@handles(stop_gradient)
def _stop_gradient(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.value(a)


@handles(aten.index_put.default)
def _index_put(f: Builder, dtype: torch.dtype, into: Any, indices: Any, values: Any, accumulate: bool = False) -> Value:
    """Values put, or added, at places that are the same for all rows."""
    at = [None if i is None else torch.from_numpy(known(f, i)) for i in indices]
    table, new = f.value(into).elements, torch.from_numpy(f.cast(f.value(values), dtype))
    shape = table[tuple(slice(None) if i is None else i for i in at)].shape
    new = new.expand(shape)
    if not accumulate:
        return Value(aten.index_put.default(table, at, new), dtype)
    numbers = torch.arange(table.numel()).reshape(table.shape)
    places = numbers[tuple(slice(None) if i is None else i for i in at)].reshape(-1).numpy()
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=table.numel())
    terms = np.full((table.numel(), int(counts.max(initial=0)) + 1), f.zero)
    terms[:, 0] = table.reshape(-1).numpy()
    nth = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    terms[places[order], 1 + nth] = new.reshape(-1).numpy()[order]
    return Value(f.sums((terms,), dtype).elements.reshape(table.shape), dtype)


@handles(aten.diagonal_scatter.default)
def _diagonal_scatter(f: Builder, dtype: torch.dtype, into: Any, part: Any, *where: int) -> Value:
    return Value(aten.diagonal_scatter.default(f.value(into).elements, f.value(part).elements, *where), dtype)


@handles(aten.constant_pad_nd.default)
def _pad(f: Builder, dtype: torch.dtype, a: Any, padding: Any, value: Any = 0) -> Value:
    return Value(aten.constant_pad_nd.default(f.value(a).elements, list(padding), f.literal(value)), dtype)
