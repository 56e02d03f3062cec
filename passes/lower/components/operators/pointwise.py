"""Functions of each element."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..elements import Unsupported
from ..values import Builder, Input, Value
from .registry import HANDLERS, Handler, handles

aten = torch.ops.aten


def _function(name: str) -> Handler:
    def run(f: Builder, dtype: torch.dtype, *args: Any) -> Value:
        return f.pointwise(name, args, dtype)

    return run


def _comparison(name: str) -> Handler:
    def run(f: Builder, dtype: torch.dtype, a: Any, b: Any) -> Value:
        within = _common(f, a, b)
        return f.pointwise(name, (a, b), dtype, torch.int64 if within == torch.bool else within)

    return run


def _common(f: Builder, *operands: Any) -> torch.dtype:
    """The dtype in which operands meet, numbers among them."""
    stand_ins = [
        torch.empty(f.value(x).elements.shape, dtype=f.value(x).dtype) if isinstance(x, Value | Input) else x
        for x in operands
    ]
    return torch.result_type(*stand_ins)


for _name in (
    "neg",
    "abs",
    "sqrt",
    "exp",
    "log",
    "sin",
    "cos",
    "tan",
    "tanh",
    "sigmoid",
    "erf",
    "acos",
    "asin",
    "atan",
):
    HANDLERS[getattr(aten, _name).default] = _function(_name)
for _name in ("log1p", "expm1", "sinh", "cosh", "floor", "sign", "maximum", "minimum", "atan2"):
    HANDLERS[getattr(aten, _name).default] = _function(_name)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    for _overload in ("Tensor", "Scalar"):
        HANDLERS[getattr(getattr(aten, _name), _overload)] = _comparison(_name)
for _name in ("and", "or"):
    for _prefix in ("logical_", "bitwise_"):
        _overload = "default" if _prefix == "logical_" else "Tensor"
        HANDLERS[getattr(getattr(aten, _prefix + _name), _overload)] = _function(_name)
HANDLERS[aten.logical_not.default] = HANDLERS[aten.bitwise_not.default] = _function("not")
for _target in (aten.mul.Tensor, aten.mul.Scalar):
    HANDLERS[_target] = _function("mul")


@handles(aten.add.Tensor, aten.add.Scalar)
def add(f: Builder, dtype: torch.dtype, a: Any, b: Any, alpha: float = 1) -> Value:
    return f.pointwise("add", (a, b if alpha == 1 else f.pointwise("mul", (b, alpha), dtype)), dtype)


@handles(aten.sub.Tensor, aten.sub.Scalar)
def _sub(f: Builder, dtype: torch.dtype, a: Any, b: Any, alpha: float = 1) -> Value:
    return f.pointwise("sub", (a, b if alpha == 1 else f.pointwise("mul", (b, alpha), dtype)), dtype)


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(f: Builder, dtype: torch.dtype, a: Any, b: Any, alpha: float = 1) -> Value:
    return _sub(f, dtype, b, a, alpha)


@handles(aten.div.Tensor, aten.div.Scalar)
def _div(f: Builder, dtype: torch.dtype, a: Any, b: Any) -> Value:
    if not dtype.is_floating_point:
        raise Unsupported("a division of integers")
    if isinstance(b, int | float) and b != 0:
        return f.pointwise("mul", (a, 1 / b), dtype)
    return f.pointwise("div", (a, b), dtype)


@handles(aten.reciprocal.default)
def _reciprocal(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.pointwise("div", (1.0, a), dtype)


@handles(aten.rsqrt.default)
def _rsqrt(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.pointwise("div", (1.0, f.pointwise("sqrt", (a,), dtype)), dtype)


@handles(aten.square.default)
def _square(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.pointwise("mul", (a, a), dtype)


@handles(aten.relu.default)
def _relu(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.pointwise("maximum", (a, 0.0), dtype)


@handles(aten.silu.default)
def _silu(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return f.pointwise("mul", (a, f.pointwise("sigmoid", (a,), dtype)), dtype)


@handles(aten.silu_backward.default)
def _silu_backward(f: Builder, dtype: torch.dtype, gradient: Any, a: Any) -> Value:
    s = f.pointwise("sigmoid", (a,), dtype)
    rest = f.pointwise("mul", (a, f.pointwise("sub", (1.0, s), dtype)), dtype)
    slope = f.pointwise("mul", (s, f.pointwise("add", (1.0, rest), dtype)), dtype)
    return f.pointwise("mul", (gradient, slope), dtype)


@handles(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(f: Builder, dtype: torch.dtype, a: Any, low: Any) -> Value:
    return f.pointwise("maximum", (a, low), dtype)


@handles(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(f: Builder, dtype: torch.dtype, a: Any, high: Any) -> Value:
    return f.pointwise("minimum", (a, high), dtype)


@handles(aten.clamp.default, aten.clamp.Tensor)
def _clamp(f: Builder, dtype: torch.dtype, a: Any, low: Any = None, high: Any = None) -> Value:
    a = a if low is None else f.pointwise("maximum", (a, low), dtype)
    return f.value(a) if high is None else f.pointwise("minimum", (a, high), dtype)


@handles(aten.where.self)
def _where(f: Builder, dtype: torch.dtype, condition: Any, a: Any, b: Any) -> Value:
    """The condition keeps its own kind of vector."""
    given = (f.cast(f.value(condition), torch.bool), f.cast(f.value(a), dtype), f.cast(f.value(b), dtype))
    return Value(torch.from_numpy(f.new("where", np.broadcast_arrays(*given), dtype, dtype)), dtype)


@handles(aten.masked_fill.Scalar)
def _masked_fill(f: Builder, dtype: torch.dtype, a: Any, mask: Any, value: Any) -> Value:
    return _where(f, dtype, mask, value, a)


@handles(aten._to_copy.default)
def _to_copy(f: Builder, dtype: torch.dtype, a: Any) -> Value:
    return Value(torch.from_numpy(f.cast(f.value(a), dtype)), dtype)


@handles(aten.pow.Tensor_Scalar)
def _pow(f: Builder, dtype: torch.dtype, a: Any, exponent: float) -> Value:
    a = Value(torch.from_numpy(f.cast(f.value(a), dtype)), dtype)
    if 0 < abs(exponent) <= 16 and exponent == int(exponent):
        power, square, n = None, a, int(abs(exponent))
        while n:
            if n % 2:
                power = square if power is None else f.pointwise("mul", (power, square), dtype)
            n //= 2
            square = f.pointwise("mul", (square, square), dtype) if n else square
        return f.value(power) if exponent > 0 else f.pointwise("div", (1.0, power), dtype)
    if abs(exponent) == 0.5:
        root = f.pointwise("sqrt", (a,), dtype)
        return root if exponent > 0 else f.pointwise("div", (1.0, root), dtype)
    return f.pointwise("pow", (a, exponent), dtype)


@handles(aten.pow.Tensor_Tensor)
def _pow_tensor(f: Builder, dtype: torch.dtype, a: Any, exponent: Any) -> Value:
    known = f.table.value(f.value(exponent).elements.numpy())
    if known.size == 1 and not np.isnan(known).any():
        result = _pow(f, dtype, a, float(known.item()))
        shape = torch.broadcast_shapes(f.value(a).elements.shape, f.value(exponent).elements.shape)
        return Value(result.elements.expand(shape), dtype)
    return f.pointwise("pow", (a, exponent), dtype)
