"""Every operator of component code computes what torch does, for any number of rows."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from distcompile.ir.operators import OPERATORS
from distcompile.passes.lower import lower
from distcompile.passes.lower.components import library
from distcompile.passes.lower.components.elements import Unsupported
from distcompile.passes.lower.components.gpu.target import GPU
from distcompile.passes.lower.components.operators import HANDLERS
from distcompile.passes.lower.components.target import PROCESSOR, Processor, Target
from distcompile.runtime.operators.halo import stop_gradient
from distcompile.runtime.operators.radial import radial_lookup
from distcompile.runtime.operators.sparse import sparse_mm

from .bodies import Constant, Inputs, Rows, Table, Weight, as_program, by_torch, compiled, traced

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

aten = torch.ops.aten
LENGTHS = (1, 7, 16, 37)
"""Numbers of rows: one, less than there are lanes, as many, and more with some left over."""
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(rows: int, dtype: torch.dtype) -> Inputs:
    """Tensors for all cases."""
    random = torch.Generator().manual_seed(rows)
    weights = torch.Generator().manual_seed(0)  # code may be compiled for one number of rows, and run for another

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=weights, dtype=torch.float64).to(dtype)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=random)

    def constant(*shape: int, zeros: float) -> Constant:
        values = weight(*shape)
        values[torch.rand(shape, generator=weights) < 0.3] = 1
        values[torch.rand(shape, generator=weights) < zeros] = 0
        return Constant(values)

    return {
        "x": Rows(normal(rows, 6)),
        "y": Rows(normal(rows, 6)),
        "unit": Rows(normal(rows, 6).tanh() * 0.9),
        "positive": Rows(normal(rows, 6).abs() + 0.1),
        "s": Rows(normal(rows)),
        "v": Rows(normal(rows, 4, 5)),
        "u": Rows(normal(rows, 5, 3)),
        "wide": Rows(normal(rows, 3, 20)),
        "across": Rows(normal(3, rows), dim=1),
        "x3": Rows(normal(rows, 3)),
        "x64": Rows(normal(rows, 64)),
        "x70": Rows(normal(rows, 70)),
        "x200": Rows(normal(rows, 200)),
        "i": Rows(integers(-5, 9, rows, 6)),
        "j": Rows(integers(1, 9, rows, 6)),
        "i20": Rows(integers(-5, 9, rows, 20)),
        "a": Rows(integers(0, 2, rows, 6).bool()),
        "b": Rows(integers(0, 2, rows, 6).bool()),
        "p": Rows(integers(0, 9, rows)),
        "p32": Rows(integers(0, 9, rows).to(torch.int32)),
        "few": Rows(integers(0, 4, rows)),
        "pairs": Rows(integers(0, 9, rows, 2)),
        "back": Rows(integers(-9, 9, rows)),
        "few_back": Rows(integers(-4, 4, rows)),
        "table": Table(weight(9, 4, 3)),
        "line": Table(weight(9)),
        "numbers": Table(torch.randint(0, 9, (9,), generator=weights).to(torch.int32)),
        "columns": Table(weight(3, 9), dim=1),
        "small": Weight(weight(9, 4)),
        "w3x200": Weight(weight(3, 200)),
        "w200x3": Weight(weight(200, 3)),
        "w64x128": Weight(weight(64, 128)),
        "w70x17": Weight(weight(70, 17)),
        "w64": Weight(weight(64)),
        "batch": Weight(weight(4, 5, 3)),
        "w6": Weight(weight(6)),
        "radial": Weight(weight(7, 6, 19)),
        "radial32": Weight(weight(5, 6, 32)),
        "w0x5": Weight(weight(0, 5)),
        "c6": constant(6, zeros=0.4),
        "c4x5": constant(4, 5, zeros=0.4),
        "c64x128": constant(64, 128, zeros=0.5),
        "few64x128": constant(64, 128, zeros=0.97),
        "mask": Constant(torch.tensor([True, False, True, False, False, True])),
        "places": Constant(torch.tensor([4, 0, -1, 4])),
        "count": Constant(torch.arange(20)),
        "starts": Constant(torch.tensor([0, 2, 2, 3, 4, 4, 6])),
        "ends": Constant(torch.tensor([1, 3, 0, 4, 2, 0])),
    }


Case = Callable[[Any], Tensor | tuple[Tensor, ...]]


def gradient(function: Callable[..., Tensor], *names: str) -> Case:
    """The gradients of a function with regard to some inputs, from outside."""

    def run(t: Any) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            given = [getattr(t, name).detach().requires_grad_() for name in names]
            result = function(*given)
            return torch.autograd.grad(result, given, torch.cos(result.detach()))

    return run


GROUPS: dict[str, dict[str, Case]] = {
    "one number": {
        "neg": lambda t: -t.x,
        "abs": lambda t: t.x.abs(),
        "abs of minus zero": lambda t: 1 / (-(t.x - t.x)).abs(),
        "sqrt": lambda t: t.positive.sqrt(),
        "rsqrt": lambda t: t.positive.rsqrt(),
        "reciprocal": lambda t: t.positive.reciprocal(),
        "exp": lambda t: t.x.exp(),
        "log": lambda t: t.positive.log(),
        "log1p": lambda t: t.unit.log1p(),
        "expm1": lambda t: t.x.expm1(),
        "sin": lambda t: t.x.sin(),
        "cos": lambda t: t.x.cos(),
        "tan": lambda t: t.unit.tan(),
        "asin": lambda t: t.unit.asin(),
        "acos": lambda t: t.unit.acos(),
        "atan": lambda t: t.x.atan(),
        "sinh": lambda t: t.x.sinh(),
        "cosh": lambda t: t.x.cosh(),
        "tanh": lambda t: t.x.tanh(),
        "sigmoid": lambda t: t.x.sigmoid(),
        "erf": lambda t: t.x.erf(),
        "floor": lambda t: (t.x * 3).floor(),
        "floor of integers": lambda t: t.i.floor(),
        "sign": lambda t: t.x.sign(),
        "sign of integers": lambda t: t.i.sign(),
        "relu": lambda t: t.x.relu(),
        "silu": lambda t: F.silu(t.x),
        "silu_backward": gradient(F.silu, "x"),
        "one number a row": lambda t: t.s.exp() * 2,
    },
    "written out by torch": {
        "softplus": lambda t: F.softplus(t.x),
        "softplus_backward": gradient(F.softplus, "x"),
        "gelu": lambda t: F.gelu(t.x),
        "gelu by tanh": lambda t: F.gelu(t.x, approximate="tanh"),
        "gelu_backward": gradient(F.gelu, "x"),
        "elu": lambda t: F.elu(t.x, alpha=0.7),
        "elu_backward": gradient(F.elu, "x"),
        "leaky_relu": lambda t: F.leaky_relu(t.x),
        "leaky_relu_backward": gradient(F.leaky_relu, "x"),
        "sigmoid_backward": gradient(torch.sigmoid, "x"),
        "tanh_backward": gradient(torch.tanh, "x"),
        "vector_norm": lambda t: torch.linalg.vector_norm(t.wide, dim=(1, 2)),
        "vector_norm, kept": lambda t: torch.linalg.vector_norm(t.v, dim=-1, keepdim=True),
        "vector_norm_backward": gradient(lambda v: torch.linalg.vector_norm(v, dim=2), "v"),
        "layer_norm": lambda t: F.layer_norm(t.wide, (20,)),
        "layer_norm with weights": lambda t: F.layer_norm(t.x, (6,), t.w6, t.c6),
        "layer_norm_backward": gradient(lambda v: F.layer_norm(v, (4, 5)), "v"),
        "lerp": lambda t: torch.lerp(t.x, t.y, 0.3),
    },
    "arithmetic": {
        "add": lambda t: t.x + t.y,
        "add, times": lambda t: torch.add(t.x, t.y, alpha=0.5),
        "add a number": lambda t: t.x + 2,
        "add.Scalar": lambda t: aten.add.Scalar(t.x, 2.5),
        "sub": lambda t: t.x - t.y,
        "sub, times": lambda t: torch.sub(t.x, t.y, alpha=3),
        "sub.Scalar": lambda t: aten.sub.Scalar(t.x, 2.5),
        "rsub": lambda t: 2 - t.x,
        "rsub.Tensor": lambda t: aten.rsub.Tensor(t.x, t.y),
        "rsub, times": lambda t: torch.rsub(t.x, 2.0, alpha=3.0),
        "mul": lambda t: t.x * t.y,
        "mul.Scalar": lambda t: aten.mul.Scalar(t.x, 2.5),
        "mul with constants": lambda t: t.x * t.c6 + t.c6,
        "mul with weights": lambda t: t.x * t.w6,
        "div": lambda t: t.x / t.positive,
        "div.Scalar": lambda t: aten.div.Scalar(t.x, 3.0),
        "div by weights": lambda t: t.x / t.w6,
        "div of a number": lambda t: 2 / t.positive,
        "atan2": lambda t: torch.atan2(t.x, t.y),
        "maximum": lambda t: torch.maximum(t.x, t.y),
        "minimum": lambda t: torch.minimum(t.x, t.c6),
        "broadcast": lambda t: t.x[:, :, None] * t.x3[:, None] + t.s[:, None, None],
        **{f"pow {n}": (lambda t, n=n: t.x**n) for n in (0, 1, 2, 3, 7, 16, -1, -2, 17)},
        **{f"pow {n}": (lambda t, n=n: t.positive**n) for n in (0.5, -0.5, 2.5, -1.5)},
        "pow tensor": lambda t: t.positive**t.x,
        "pow constants": lambda t: t.positive**t.c6,
        "pow one constant": lambda t: t.x ** torch.full((1,), 2.0, dtype=t.x.dtype),
        "pow integers": lambda t: t.i**3,
        "first power of integers": lambda t: torch.pow(t.i, 1.0),
        "clamp": lambda t: t.x.clamp(-0.3, 0.4),
        "clamp, low alone": lambda t: t.x.clamp(min=0.1),
        "clamp, high alone": lambda t: t.x.clamp(max=0.1),
        "clamp_min": lambda t: aten.clamp_min.default(t.x, 0.2),
        "clamp_max": lambda t: aten.clamp_max.default(t.x, 0.2),
        "clamp_min.Tensor": lambda t: aten.clamp_min.Tensor(t.x, t.y),
        "clamp_max.Tensor": lambda t: aten.clamp_max.Tensor(t.x, t.y),
        "clamp.Tensor": lambda t: torch.clamp(t.x, t.c6 - 0.1, t.c6 + 0.1),
        "clamp integers": lambda t: t.i.clamp(-1, 2),
        "clamp integers to fractions": lambda t: t.i.clamp(0.5, 2.5),
    },
    "truth and choices": {
        **{f"{n} of tensors": (lambda t, n=n: getattr(torch, n)(t.i, t.j)) for n in ("lt", "le", "gt", "ge", "eq")},
        **{f"{n} a number": (lambda t, n=n: getattr(torch, n)(t.x, 0.1)) for n in ("lt", "le", "gt", "ge")},
        **{f"{n} of truths": (lambda t, n=n: getattr(torch, n)(t.a, t.x > 0)) for n in ("lt", "le", "gt", "ge", "eq")},
        "ne": lambda t: t.i != t.j,
        "ne a number": lambda t: t.i != 3,
        "eq a number": lambda t: t.i == 3,
        "ne of truths": lambda t: t.a != t.b,
        "comparison of dtypes": lambda t: t.i < t.x,
        "not": lambda t: ~t.a,
        "not of computed": lambda t: ~(t.x > 0),
        "logical_not": lambda t: torch.logical_not(t.i),
        "bitwise_not": lambda t: ~t.i,
        "and": lambda t: t.a & (t.x > 0),
        "or": lambda t: t.a | t.b,
        "and of integers": lambda t: t.i & t.j,
        "or of integers": lambda t: t.i | t.j,
        "logical_and": lambda t: torch.logical_and(t.i, t.x > 0),
        "logical_or": lambda t: torch.logical_or(t.a, t.i),
        "product of truths": lambda t: ~(t.a * t.b),
        "sum of two truths": lambda t: ~(t.a + (t.x > 0)),
        "larger truth": lambda t: torch.maximum(t.a, t.b),
        "smaller truth": lambda t: torch.minimum(t.a, t.x > 0),
        "truth as number": lambda t: t.a.to(t.x.dtype) * t.x,
        "truth plus number": lambda t: t.x + t.a,
        "count of truths": lambda t: t.a.sum(-1),
        "count of computed truths": lambda t: (t.x > 0).sum(-1, keepdim=True),
        "product of all truths": lambda t: t.a.prod(-1),
        "where": lambda t: torch.where(t.a, t.x, t.y),
        "where of computed": lambda t: torch.where(t.x > t.y, t.x, t.c6),
        "where not": lambda t: torch.where(~t.a, t.x, t.y),
        "where of integers": lambda t: torch.where(t.i > 2, t.i, t.j),
        "where of truths": lambda t: torch.where(t.a, t.b, t.x > 0),
        "where of a constant mask": lambda t: torch.where(t.mask, t.x, t.y),
        "where of a number": lambda t: torch.where(t.a, t.x, 0.5),
        "where, broadcast": lambda t: torch.where((t.s > 0)[:, None], t.x, t.y),
        "masked_fill": lambda t: t.x.masked_fill(t.a, 3.5),
        "masked_fill of integers": lambda t: t.i.masked_fill(t.x > 0, 7),
        "masked_fill by a constant": lambda t: t.x.masked_fill(t.mask, 0.0),
    },
    "dtypes": {
        "to integers": lambda t: (t.x * 3).long(),
        "to int32": lambda t: (t.x * 3).to(torch.int32) + 1,
        "to truth": lambda t: t.i.bool(),
        "from integers": lambda t: t.i.to(t.x.dtype) * t.x,
        "of two floats": lambda t: (t.x.float() * 2).double() + t.y.double(),
        "integers and fractions": lambda t: t.i * 0.5 + t.j,
        "division of integers": lambda t: t.i / t.j,
        "division by three": lambda t: t.i / 3,
        "reciprocal of integers": lambda t: t.j.reciprocal(),
        "integer arithmetic": lambda t: (t.i * t.j - 3) * t.i + 2,
        "integer constants": lambda t: torch.cat([t.i20, t.i20 * t.count], 1),
        "int32 arithmetic": lambda t: t.p32 * 2 + t.p32,
        "copy": lambda t: aten.copy.default(aten.empty.memory_format([t.n, 6], dtype=torch.float64), t.x[:, :1]),
    },
    "moves": {
        "the input itself": lambda t: t.x,
        "integers themselves": lambda t: t.p,
        "truths themselves": lambda t: t.a,
        "weights for each row": lambda t: t.w3x200[:1].expand(t.n, 200),
        "a constant for each row": lambda t: t.c6.expand(t.n, 6),
        "reshape": lambda t: t.v.reshape(t.n, 20) * 2,
        "transpose and reshape": lambda t: t.v.transpose(1, 2).reshape(t.n, 20),
        "permute": lambda t: t.v.permute(0, 2, 1) + 1,
        "t": lambda t: t.across.t() * 2,
        "rows across": lambda t: (t.across.sum(0), t.across.T * t.s[:, None]),
        "unsqueeze and expand": lambda t: t.x[:, None].expand(t.n, 3, 6) * 2,
        "squeeze": lambda t: (t.v[:, :1].squeeze(1), t.x[:, :1].squeeze(-1), t.v[:, :1, :1].squeeze((1, 2))),
        "select": lambda t: t.v[:, 2] - t.v[:, -1],
        "slices": lambda t: (t.x[:, 1:4], t.x[:, ::2], t.wide[:, 1:, 3:17], t.x[:, 4:4]),
        "unbind": lambda t: t.v.unbind(1)[2] * t.v.unbind(1)[0],
        "split": lambda t: (t.x.split(4, 1)[1], t.x.split([1, 2, 3], 1)[2]),
        "diagonal": lambda t: torch.diagonal(t.v, 1, 1, 2),
        "cat": lambda t: torch.cat([t.x[:, 3:], t.x200, t.s[:, None], t.c6.expand(t.n, 6)], 1),
        "stack": lambda t: torch.stack([t.x, t.y, t.x * 2], 1),
        "repeat": lambda t: t.x.repeat(1, 3),
        "flip": lambda t: t.v.flip(1, 2),
        "roll": lambda t: t.x.roll(2, 1),
        "copies": lambda t: t.x.clone() + t.y.detach() + aten.alias.default(t.x) + stop_gradient(t.x),
        "contiguous": lambda t: aten.contiguous.default(t.v.transpose(1, 2)),
        "lift_fresh_copy": lambda t: aten.lift_fresh_copy.default(t.x) * 2,
        "slice_backward": lambda t: aten.slice_backward.default(t.x3, [t.n, 6], 1, 1, 4, 1),
        "select_backward": lambda t: aten.select_backward.default(t.x, [t.n, 4, 6], 1, 2),
        "slice_scatter": lambda t: aten.slice_scatter.default(t.x, t.x3, 1, 2, 5),
        "select_scatter": lambda t: aten.select_scatter.default(t.v, t.v[:, 0] * 2, 1, -1),
        "diagonal_scatter": lambda t: aten.diagonal_scatter.default(t.v, t.x[:, :4], 0, 1, 2),
        "diagonal_backward": gradient(lambda v: torch.diagonal(v, 0, 1, 2), "v"),
    },
    "padding": {  # alone: torch fixes the number of rows while it follows these
        "pad": lambda t: F.pad(t.x, (1, 2)),
        "pad with a number": lambda t: F.pad(t.v, (1, 0, 0, 2), value=1.5),
        "pad integers": lambda t: F.pad(t.i, (0, 1), value=4),
    },
    "fills": {
        "zeros": lambda t: torch.zeros(t.n, 3),
        "ones": lambda t: torch.ones(t.n, dtype=torch.bool),
        "full": lambda t: torch.full((t.n, 3), 7),
        "zeros_like": lambda t: torch.zeros_like(t.x),
        "ones_like": lambda t: torch.ones_like(t.v),
        "full_like": lambda t: torch.full_like(t.x, 2.5),
        "new_zeros": lambda t: t.x.new_zeros(t.n, 4),
        "new_ones": lambda t: t.x.new_ones(t.n, 4),
        "new_full": lambda t: t.x.new_full((t.n, 4), -0.5),
    },
    "pointers": {
        "rows": lambda t: t.table[t.p] * 2,
        "rows by int32": lambda t: aten.index_select.default(t.table, 0, t.p32),
        "negative": lambda t: t.table[t.back],
        "two a row": lambda t: t.table[t.pairs].sum(1),
        "two pointers": lambda t: t.table[t.p, t.few],
        "two negative pointers": lambda t: t.table[t.back, t.few_back],
        "pointers to a number": lambda t: t.line[t.p] * t.s,
        "pointer by pointer": lambda t: t.line[t.numbers[t.p]],
        "along dimension 1": lambda t: t.columns[:, t.p].T,
        "along the last dimension": lambda t: aten.index_select.default(t.columns, -1, t.p).T * 2,
        "two a row along dimension 1": lambda t: t.columns[:, t.pairs].permute(1, 0, 2),
        "embedding": lambda t: F.embedding(t.p, t.small),
        "constant places": lambda t: (t.x[:, t.places], aten.index_select.default(t.x, 1, t.ends)),
        "constant mask": lambda t: t.x[:, t.mask] * 2,
        "rows of weights": lambda t: t.small[t.places].sum(0) * t.s[:, None],
        "index_put": lambda t: aten.index_put.default(t.x, [None, t.places[:3]], t.x3),
        "index_put, added": lambda t: aten.index_put.default(t.x, [None, t.places], t.v[:, :, 0], True),
        "index_put by a mask": lambda t: aten.index_put.default(t.x, [None, t.mask], t.x3),
        "index_put, added by a mask": lambda t: aten.index_put.default(t.x, [None, t.mask], t.x3, True),
    },
    "sums": {
        **{
            f"sum over {dims}, {'kept' if keep else 'not kept'}": (lambda t, d=dims, k=keep: t.v.sum(d, k))
            for dims in (1, 2, -1, (1, 2), (2, 1))
            for keep in (False, True)
        },
        "mean": lambda t: (t.v.mean(1), t.v.mean((1, 2)), t.v.mean(-1, keepdim=True)),
        "var_mean": lambda t: torch.var_mean(t.v, dim=(1, 2)),
        "var_mean, kept": lambda t: torch.var_mean(t.v, dim=1, correction=0, keepdim=True),
        "prod": lambda t: (t.v.prod(1), t.v.prod(-1, keepdim=True)),
        "sum of integers": lambda t: t.i.sum(-1),
        "sum of constants and rows": lambda t: (t.x * t.c6).sum(-1),
        "long sum": lambda t: t.x200.sum(-1),
        "long sum of computed": lambda t: t.wide.exp().sum(-1),
        "long sum of products": lambda t: (t.x200 * t.w3x200[0]).sum(-1),
        "sum across": lambda t: (t.wide * t.x3[:, :, None]).sum(1),
        "sum of a constant": lambda t: t.c6.sum() * t.x,
        "sum of nothing": lambda t: t.x[:, :0].sum(-1),
        "product of nothing": lambda t: t.x[:, :0].prod(-1),
    },
    "products": {
        "3 x 200": lambda t: t.x3 @ t.w3x200,
        "200 x 3": lambda t: t.x200 @ t.w200x3,
        "64 x 128": lambda t: t.x64 @ t.w64x128,
        "70 x 17": lambda t: t.x70 @ t.w70x17,
        "of what is computed": lambda t: t.x70.tanh() @ t.w70x17 + 1,
        "transposed": lambda t: t.x200 @ t.w3x200.T,
        "weights on the left": lambda t: (t.w64x128.T @ t.x64.T).T,
        "columns": lambda t: t.x64 @ t.w64x128[:, 3:50],
        "every third column": lambda t: t.x64 @ t.w64x128[:, ::3],
        "rows": lambda t: t.x64[:, :30] @ t.w64x128[10:40],
        "of nothing": lambda t: t.x64[:, :0] @ t.w0x5,
        "with half zeros": lambda t: t.x64 @ t.c64x128,
        "with nearly all zeros": lambda t: t.x64 @ t.few64x128,
        "with a small constant": lambda t: t.v[:, :, 0] @ t.c4x5,
        "addmm": lambda t: torch.addmm(t.x70[:, :17], t.x70, t.w70x17, beta=0.3, alpha=2.0),
        "addmm with a bias": lambda t: torch.addmm(t.w70x17[0], t.x70, t.w70x17),
        "mv": lambda t: t.x64 @ t.w64,
        "dot": lambda t: t.w6.dot(t.c6) * t.s,
        "of matrices of rows": lambda t: torch.bmm(t.v, t.u),
        "of matrices with weights": lambda t: torch.matmul(t.v, t.batch[0]),
        "of matrices with weights on the left": lambda t: torch.matmul(t.batch[0], t.u[:, :3]),
        "of weights for each": lambda t: torch.bmm(t.v.transpose(0, 1), t.batch).transpose(0, 1),
        "of weights for each, left": lambda t: torch.bmm(t.batch.mT, t.v.permute(1, 2, 0)).permute(2, 0, 1),
        "of matrices with a constant": lambda t: torch.matmul(t.v, t.c4x5.T),
        "baddbmm": lambda t: torch.baddbmm(t.v[:, :, :3], t.v, t.u, beta=0.5, alpha=2.0),
        "einsum": lambda t: torch.einsum("rai,aij->raj", t.v, t.batch),
        "outer": lambda t: torch.einsum("rij,rik->rjk", t.v, t.v),
        "sparse": lambda t: sparse_mm(t.x, t.starts, t.ends, t.w6, 5),
    },
    "tables": {
        "values": lambda t: radial_lookup(t.s, t.radial, -0.8, 1.3, 0),
        "slopes": lambda t: 0.1 * radial_lookup(t.unit[:, 2], t.radial, -0.8, 1.3, 1),
        "both": lambda t: (
            radial_lookup(t.s, t.radial32, -0.5, 1.5, 0) * t.w64[:32],
            0.1 * radial_lookup(t.s, t.radial32, -0.5, 1.5, 1),
        ),
        "the same once more": lambda t: (
            radial_lookup(t.s, t.radial32, -0.5, 1.5, 0).sin(),
            radial_lookup(t.s, t.radial32, -0.5, 1.5, 0).cos(),
        ),
        "curvatures": lambda t: 0.01 * radial_lookup(t.x[:, 1], t.radial32, -0.5, 1.5, 2),
        "a part": lambda t: radial_lookup(t.s, t.radial32, -0.5, 1.5, 0)[:, 3:20:2],
    },
}

NOT_TRACED = {
    aten.amax.default: "has no form",
    aten.amin.default: "has no form",
    aten.square.default: "is a power when torch follows it",
    aten.view.default: "is a reshape when it comes here",
    aten._unsafe_view.default: "is a reshape when it comes here",
    aten.squeeze.default: "says what it squeezes when it comes here",
    aten.contiguous.default: "is a clone when torch follows it",
    aten.view_as_real.default: "is of complex numbers, which have no form",
}
"""Operators without a case, and why."""


def flat(results: list[Any]) -> list[Tensor]:
    """Results of cases, one of which may be several."""
    return [r for result in results for r in (result if isinstance(result, tuple | list) else [result])]


@functools.cache
def body(group: str, dtype: torch.dtype) -> fx.GraphModule:
    """All cases of a group."""
    return traced(lambda t: flat([case(t) for case in GROUPS[group].values()]), inputs(LENGTHS[1], dtype))


KINDS: dict[str, tuple[Target, torch.dtype]] = {
    "processor, double": (PROCESSOR, torch.float64),
    "processor, single": (PROCESSOR, torch.float32),
    "gpu, double": (GPU, torch.float64),
}
"""Targets and dtypes; a GPU is emulated, one thread at a time."""
CPU = Path("/proc/cpuinfo")
if platform.machine() == "x86_64" and CPU.exists() and "avx512f" in CPU.read_text():  # others cannot run the code
    KINDS["registers of 32 bytes, single"] = Processor(("-march=haswell",)), torch.float32
    KINDS["registers of 16 bytes, double"] = Processor(("-march=x86-64",)), torch.float64


@pytest.mark.parametrize(("target", "dtype"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("group", GROUPS)
def test_operators_compute_what_torch_does(group: str, dtype: torch.dtype, target: Target) -> None:
    """All cases of a group are one body."""
    code = compiled(body(group, dtype), inputs(LENGTHS[1], dtype), target)
    for rows in LENGTHS:
        given = inputs(rows, dtype)
        found = iter(code(given))
        for name, case in GROUPS[group].items():
            for expected in flat(by_torch(lambda t, case=case: [case(t)], given)):
                within = TOLERANCES.get(expected.dtype, 0.0)
                torch.testing.assert_close(
                    next(found),
                    expected,
                    rtol=within,
                    atol=within,
                    msg=lambda m, name=name, rows=rows: f"{name}, {rows} rows: {m}",
                )
        assert next(found, None) is None


def test_as_many_rows_side_by_side_as_a_register_holds() -> None:
    """Of what most numbers are: the few of single precision in a program in double precision do not count."""
    single, double = inputs(7, torch.float32), inputs(7, torch.float64)

    def lanes(case: Case, given: Inputs, instructions: str) -> int:
        return as_program(lambda t: flat([case(t)]), given, Processor((instructions,)))[1].lanes

    def mixed(t: Any) -> Tensor:
        return t.x * (t.x > 0).float().to(t.x.dtype)

    lengths = {PROCESSOR.instructions[0]: library.register_bytes(PROCESSOR.instructions)}
    if platform.machine() == "x86_64":
        lengths |= {"-march=x86-64": 16, "-march=haswell": 32, "-march=skylake-avx512": 64}
    for instructions, length in lengths.items():
        assert lanes(mixed, single, instructions) == length // 4
        assert lanes(mixed, double, instructions) == length // 8


@functools.cache
def targets() -> frozenset[Any]:
    """The operators in the cases."""
    nodes = [n for group in GROUPS for n in body(group, torch.float64).graph.nodes]
    return frozenset(n.target for n in nodes if n.op == "call_function")


def test_every_operator_has_a_case() -> None:
    """All that component code says it knows."""
    assert set(HANDLERS) - targets() - set(NOT_TRACED) == set()
    assert not targets() & set(NOT_TRACED)


def test_every_operator_that_moves_has_a_case() -> None:
    """Views, moves, copies and fills of the table of facts."""
    known = {t for t, row in OPERATORS.items() if row.moves or row.view or row.identity or row.fill is not None}
    assert known - targets() - set(NOT_TRACED) == set()


def test_constants_that_read_like_places() -> None:
    """Two tables of the numbers 0 to 19 in one program: integers of 64 bits, and the places of a result."""
    given = inputs(7, torch.float64)
    (found,) = compiled(lambda t: [t.i20 < t.count], given)(given)
    assert torch.equal(found, given["i20"].tensor < torch.arange(20))


# ---- What is not finite, and what has no form.


def special(rows: int, dtype: torch.dtype) -> Inputs:
    """Numbers among which some are not finite."""
    random = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 20, generator=random, dtype=torch.float64)
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0], dtype=torch.float64)
    chosen = torch.randint(0, 20, x.shape, generator=random)
    x = torch.where(chosen < len(values), values[chosen.clamp(max=len(values) - 1)], x)
    weights = torch.randn(20, 30, generator=random.manual_seed(0), dtype=torch.float64)
    return {
        "x": Rows(x.to(dtype)),
        "y": Rows(x.flip(0).roll(1, 1).to(dtype)),
        "w": Weight(weights.to(dtype)),
        "mixed": Constant(torch.where(weights > 0.5, weights, 0.0).to(dtype)),
        "mask": Rows(chosen > 9),
        "radial": Weight(torch.randn(7, 6, 18, generator=random, dtype=torch.float64).to(dtype)),
    }


SPECIAL: dict[str, Case] = {
    **{name: (lambda t, n=name: getattr(torch, n)(t.x)) for name in ("abs", "sqrt", "exp", "log", "tanh", "sigmoid")},
    **{name: (lambda t, n=name: getattr(torch, n)(t.x)) for name in ("sin", "erf", "atan", "relu", "floor", "expm1")},
    **{name: (lambda t, n=name: getattr(torch, n)(t.x, t.y)) for name in ("add", "sub", "mul", "div", "atan2")},
    **{name: (lambda t, n=name: getattr(torch, n)(t.x, t.y)) for name in ("maximum", "minimum", "lt", "eq")},
    "lookups": lambda t: [radial_lookup(t.x[:, i], t.radial, -0.5, 1.5, n) for i in range(20) for n in (0, 1)],
    "pow": lambda t: (t.x**2, t.x**-1, t.x.abs() ** 2.5),
    "clamp": lambda t: (t.x.clamp(-1, 1), t.x.clamp(min=0), t.x.clamp(max=0)),
    "where": lambda t: torch.where(t.mask, t.x, t.y),
    "masked_fill": lambda t: t.x.masked_fill(t.mask, 0.0),
    "sum": lambda t: (t.x.sum(-1), t.x[:, :3].sum(-1), (t.x * t.y).sum(-1)),
    "product": lambda t: t.x @ t.w,
    "small product": lambda t: t.x[:, :4] @ t.w[:4, :5],
}


@pytest.mark.parametrize("target", [PROCESSOR, GPU], ids=["processor", "gpu"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_what_is_not_finite_flows_through(dtype: torch.dtype, target: Target) -> None:
    """Infinities and NaN come out where torch has them, and nowhere else."""

    def run(t: Any) -> list[Tensor]:
        return flat([case(t) for case in SPECIAL.values()])

    code = compiled(run, special(7, dtype), target)
    for rows in LENGTHS:
        given = special(rows, dtype)
        found = iter(code(given))
        for name, case in SPECIAL.items():
            for expected in flat(by_torch(lambda t, case=case: [case(t)], given)):
                torch.testing.assert_close(
                    next(found),
                    expected,
                    rtol=TOLERANCES[dtype],
                    atol=TOLERANCES[dtype],
                    equal_nan=True,
                    msg=lambda m, name=name, rows=rows: f"{name}, {rows} rows: {m}",
                )


def test_a_constant_zero_times_what_is_not_finite_may_be_zero() -> None:
    """Terms with a constant zero are left out; all others are as torch has them."""
    given = special(37, torch.float64)
    (found,) = compiled(lambda t: [t.x @ t.mixed], given)(given)
    x, weights = given["x"].tensor, given["mixed"].tensor
    terms = torch.where(weights == 0, 0.0, x[:, :, None] * weights)
    torch.testing.assert_close(found, terms.sum(1), rtol=1e-12, atol=1e-12, equal_nan=True)
    assert bool((weights == 0).any()) and bool((~found.isfinite()).any()) and bool(found.isfinite().any())


NO_FORM: dict[str, Case] = {
    "not a number": lambda t: t.x + float("nan"),
    "infinity": lambda t: t.x * float("inf"),
    "infinite power": lambda t: t.x ** float("inf"),
    "filled with infinity": lambda t: t.x.masked_fill(t.a, -float("inf")),
    "largest": lambda t: t.x.amax(-1),
    "several dtypes": lambda t: torch.cat([t.x, t.i], 1),
    "division of integers": lambda t: t.i // 2,
    "random": lambda t: torch.rand_like(t.x),
    "pointer into a row": lambda t: torch.gather(t.x, 1, t.few[:, None]),
    "pointers and the whole table": lambda t: t.w3x200[:, t.p].T + t.x200[:, :3] @ t.w3x200[:, :3],
    "few bits": lambda t: (t.i + 300).to(torch.uint8).long(),
    "bits": lambda t: t.i ^ t.j,
    "a derivative that is zero": lambda t: radial_lookup(t.s, t.radial, -0.8, 1.3, 6),
}


@pytest.mark.parametrize("name", NO_FORM)
def test_bodies_without_a_form_say_so(name: str) -> None:
    """They are left to another code generator, and end in no other error."""
    with pytest.raises(Unsupported):
        compiled(lambda t: [NO_FORM[name](t)], inputs(7, torch.float64))
