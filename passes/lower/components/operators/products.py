"""Sums over dimensions of a row, and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .....runtime.operators.sparse import sparse_mm
from ..elements import Unsupported
from ..values import Builder, Value, check_size, known
from .pointwise import add
from .registry import handles

aten = torch.ops.aten


@handles(aten.sum.default, aten.sum.dim_IntList)
def _sum(f: Builder, dtype: torch.dtype, a: Any, dims: Any = (), keep: bool = False) -> Value:
    value = f.value(a)
    elements = torch.from_numpy(f.cast(value, dtype))
    reduced = sorted({d % elements.dim() for d in dims} or set(range(elements.dim()))) if elements.dim() else []
    rest = [d for d in range(elements.dim()) if d not in reduced]
    terms = elements.permute(*rest, *reduced).flatten(len(rest)) if reduced else elements.unsqueeze(-1)
    result = f.sums((terms.numpy(),), dtype).elements
    return Value(
        result.reshape([1 if d in reduced else n for d, n in enumerate(elements.shape)]) if keep else result, dtype
    )


@handles(aten.mean.dim)
def _mean(f: Builder, dtype: torch.dtype, a: Any, dims: Any, keep: bool = False) -> Value:
    total = _sum(f, dtype, a, dims, keep)
    return f.pointwise("mul", (total, total.elements.numel() / f.value(a).elements.numel()), dtype)


@handles(aten.var_mean.correction)
def _var_mean(
    f: Builder, dtype: Any, a: Any, dims: Any = None, *, correction: float = 1, keepdim: bool = False
) -> list[Value]:
    value = f.value(a)
    dims = dims or list(range(value.elements.dim()))
    mean = _mean(f, value.dtype, a, dims, True)
    off = f.pointwise("sub", (a, mean), value.dtype)
    total = _sum(f, value.dtype, f.pointwise("mul", (off, off), value.dtype), dims, keepdim)
    count = value.elements.numel() // mean.elements.numel()
    freedom = max(count - correction, 0)
    how, factor = ("mul", 1 / freedom) if freedom else ("div", 0.0)
    variance = f.pointwise(how, (total, factor), value.dtype)
    return [variance, mean if keepdim else Value(mean.elements.reshape(variance.elements.shape), value.dtype)]


@handles(aten.prod.dim_int)
def _prod(f: Builder, dtype: torch.dtype, a: Any, dim: int, keep: bool = False) -> Value:
    factors = torch.from_numpy(f.cast(f.value(a), dtype)).movedim(dim, 0)
    result = Value(torch.full(factors.shape[1:], f.literal(1)), dtype)
    for factor in factors:
        result = f.pointwise("mul", (result, Value(factor, dtype)), dtype)
    return Value(result.elements.unsqueeze(dim), dtype) if keep else result


@handles(aten.amax.default, aten.amin.default)
def _extreme(f: Builder, dtype: torch.dtype, a: Any, dims: Any = (), keep: bool = False) -> Value:
    raise Unsupported("a largest value")


@handles(aten.mm.default)
def _mm(f: Builder, dtype: torch.dtype, a: Any, b: Any) -> Value:
    return f.product(f.value(a), f.value(b), dtype)


@handles(aten.addmm.default)
def _addmm(f: Builder, dtype: torch.dtype, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Value:
    product = _mm(f, dtype, a, b)
    product = product if alpha == 1 else f.pointwise("mul", (product, alpha), dtype)
    return add(f, dtype, product, bias, beta)


@handles(aten.bmm.default)
def _bmm(f: Builder, dtype: torch.dtype, a: Any, b: Any) -> Value:
    x, y = f.value(a), f.value(b)
    left, right = f.cast(x, dtype), f.cast(y, dtype)
    batch, m, k = left.shape
    n = right.shape[2]
    if not f.is_whole(left) and not f.is_whole(right):
        check_size((batch, m, n, k))
        shape = (batch, m, n, k)
        factors = (
            np.broadcast_to(left[:, :, None, :], shape),
            np.broadcast_to(right.transpose(0, 2, 1)[:, None], shape),
        )
        return f.sums(factors, dtype)
    each = [
        f.product(Value(torch.from_numpy(p), dtype), Value(torch.from_numpy(q), dtype), dtype).elements
        for p, q in zip(left, right, strict=True)
    ]
    return Value(torch.stack(each), dtype)


@handles(aten.baddbmm.default)
def _baddbmm(f: Builder, dtype: torch.dtype, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Value:
    product = _bmm(f, dtype, a, b)
    product = product if alpha == 1 else f.pointwise("mul", (product, alpha), dtype)
    return add(f, dtype, product, bias, beta)


@handles(aten.mv.default, aten.dot.default)
def _mv(f: Builder, dtype: torch.dtype, a: Any, b: Any) -> Value:
    x, y = f.value(a), f.value(b)
    left = x.elements if x.elements.dim() == 2 else x.elements[None]
    result = f.product(Value(left, x.dtype), Value(y.elements[:, None], y.dtype), dtype).elements
    return Value(result[:, 0] if x.elements.dim() == 2 else result[0, 0], dtype)


@handles(sparse_mm)
def _sparse_mm(f: Builder, dtype: torch.dtype, x: Any, rows: Any, columns: Any, values: Any, width: int) -> Value:
    starts, at = (known(f, t) for t in (rows, columns))
    left = f.value(x).elements.numpy()
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    matrix = np.full((left.shape[1], width), f.zero)
    matrix[row, at] = f.value(values).elements.numpy()
    return Value(torch.from_numpy(f.written_out(left, matrix, dtype)), dtype)
