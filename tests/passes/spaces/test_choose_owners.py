"""Rows follow the pointer with the most traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from printed import programs
from torch import Tensor


def reads_more(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """24 wide through p, 3 through q."""
    wide = torch.cat([x] * 8, 1)
    return torch.zeros_like(x).index_add(0, q, wide[p][:, :3]), wide


def adds_more(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """3 through p, 24 wide through q."""
    wide = torch.cat([x[p]] * 8, 1)
    return torch.zeros(x.shape[0], 24, dtype=x.dtype).index_add(0, q, wide)


def both_at_once(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The first of equals."""
    return torch.zeros_like(x).index_add(0, q, x[p])


def angles(x: Tensor, p: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    d = x[p]
    return torch.zeros_like(d).index_add(0, f, d[f].sin()), torch.zeros_like(x).index_add(0, p, d)


@pytest.mark.parametrize(
    ("model", "owners"),
    [(reads_more, {"p"}), (adds_more, {"q"}), (both_at_once, {"p"}), (angles, {"p", "f"})],
)
def test_the_most_bytes_stay(model: Callable[..., Any], owners: set[str]) -> None:
    """One owner pointer for each space that has any."""
    program = programs(model)["choose_owners"]
    assert {p.name for p in program.pointers if p.owner} == owners
    assert not any(p.owner for p in programs(model)["infer_spaces"].pointers)
