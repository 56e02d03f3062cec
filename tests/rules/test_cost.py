"""What a row costs: bytes of its result, and its work in bytes."""

from __future__ import annotations

import math
from typing import Any

import torch
from printed import programs
from torch import Tensor, fx

from distcompile.rules.cost import FLOPS_PER_BYTE, bytes_per_row, product_flops, work_per_row

aten = torch.ops.aten


def model(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    wide = x.T.T @ torch.ones(3, 8, dtype=x.dtype)
    return torch.zeros_like(wide).index_add(0, q, wide[p]), torch.tanh(x), torch.rand_like(x) * x, torch.cumsum(x, 1)


def found(target: Any) -> tuple[Any, fx.Node]:
    """The program, and an operator of it."""
    program = programs(model)["place"]
    return program, next(n for n in program.graph.graph.nodes if n.target is target)


def test_bytes_of_a_row() -> None:
    """Features times eight bytes; the number of rows does not count."""
    assert bytes_per_row(*found(aten.tanh.default)) == 3 * 8
    assert bytes_per_row(*found(aten.mm.default)) == 8 * 8


def test_work_of_a_row() -> None:
    """Elementwise work is cheap, constants are free, products count operations, no random number is drawn again."""
    assert work_per_row(*found(aten.tanh.default)) == 0.3 * 24
    assert work_per_row(*found(aten.cumsum.default)) == 24
    assert work_per_row(*found(aten.index_select.default)) == 1.5 * 64
    assert work_per_row(*found(aten.full.default)) == 0
    assert product_flops(*found(aten.mm.default)) == 2 * 3 * 8
    assert work_per_row(*found(aten.mm.default)) == 2 * 3 * 8 / FLOPS_PER_BYTE + 64
    assert work_per_row(*found(aten.rand_like.default)) == math.inf
