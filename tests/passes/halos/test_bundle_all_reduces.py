"""Sums over ranks that do not need each other share a message; one that needs another does not wait for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from printed import holds, operators, programs
from torch import Tensor


def apart(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.zeros_like(x).index_add(0, q, x[p])
    return h.sum().exp(), h.square().sum().exp()


def by_rows(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Rows are made of the first sum, and summed again."""
    h = torch.zeros_like(x).index_add(0, q, x[p])
    return (h * h.sum().exp()).sin().sum()


def by_numbers(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The first sum scales a part of the second."""
    h = torch.zeros_like(x).index_add(0, q, x[p])
    return (h.square().sum() * h.sum().exp()).sin()


def test_one_message_for_both() -> None:
    """The earlier waits for the later."""
    holds(
        operators(programs(apart)["bundle_all_reduces"]),
        """
           %5: f64[] partial = sum(%4)
           %6: f64[atoms, 3] = pow.Tensor_Scalar(%4, 2)
           %7: f64[] partial = sum(%6)
        >> %8 = all_reduces([%5, %7], sum)
           %9: f64[] = getitem(%8, 0)
           %10: f64[] = getitem(%8, 1)
           %11: f64[] = exp(%9)
           %12: f64[] = exp(%10)
           return [%11, %12]
        """,
    )


@pytest.mark.parametrize("model", [by_rows, by_numbers])
def test_one_that_is_made_of_another_has_its_own(model: Callable[..., Any]) -> None:
    """Two messages, one after the other."""
    text = operators(programs(model)["bundle_all_reduces"])
    assert text.count("= all_reduce(") == 2
    assert "all_reduces" not in text
