"""Partial values are made whole as late as possible, and once."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def energy(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Its square needs the whole energy, twice of it does not."""
    e = torch.zeros_like(x).index_add(0, q, x[p]).sum()
    return e * e, e * 2


def late(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """What is linear comes before the message."""
    e = torch.zeros_like(x).index_add(0, q, x[p]).sum()
    return torch.tanh(-e * 2)


def result(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, q, x[p]).sum()


def test_results_are_whole() -> None:
    """Whoever called is given the sum over all ranks."""
    holds(
        operators(programs(result)["insert_all_reduces"]),
        """
           %5: f64[] partial = sum(%4)
        >> %6: f64[] = all_reduce(%5)
           return [%6]
        """,
    )


def test_one_serves_all() -> None:
    """What could have stayed partial is made of the whole value, too."""
    holds(
        operators(programs(energy)["insert_all_reduces"]),
        """
           %5: f64[] partial = sum(%4)
        >> %6: f64[] = all_reduce(%5)
           %7: f64[] = mul.Tensor(%6, %6)
           %8: f64[] = mul.Tensor(%6, 2)
           return [%7, %8]
        """,
    )


def test_as_late_as_possible() -> None:
    """In front of the first operator that is not linear."""
    holds(
        operators(programs(late)["insert_all_reduces"]),
        """
           %5: f64[] partial = sum(%4)
           %6: f64[] partial = neg(%5)
           %7: f64[] partial = mul.Tensor(%6, 2)
        >> %8: f64[] = all_reduce(%7)
           %9: f64[] = tanh(%8)
           return [%9]
        """,
    )
