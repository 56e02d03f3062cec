"""Sums over ranks that do not need each other share a message; one that needs another does not wait for itself."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def apart(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.zeros_like(x).index_add(0, q, x[p])
    return h.sum().exp(), h.square().sum().exp()


def in_turn(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    h = torch.zeros_like(x).index_add(0, q, x[p])
    return (h * h.sum().exp()).sin().sum()


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


def test_one_that_is_made_of_another_has_its_own() -> None:
    """Two messages, one after the other."""
    text = operators(programs(in_turn)["bundle_all_reduces"])
    assert text.count("= all_reduce(") == 2
    assert "all_reduces" not in text
