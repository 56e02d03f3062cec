"""Every value is given its placement: rows of a space, the same on every rank, or a part of a sum."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor

from distcompile.ir import META


def energy(x: Tensor, p: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = torch.zeros_like(x).index_add(0, q, x[p] * g)
    e = h.sum()
    return e * e, -e, h.sum(1)


def test_a_line_for_each_value() -> None:
    """Spaces in the dimensions that count rows; `mul` needs the whole energy, `neg` does not."""
    holds(
        operators(programs(energy)["place"]),
        """
        %0: f64[atoms, 3] = full([n_atoms, 3], 0, dtype=f64)
        %1: f64[edges, 3] = index_select(x, 0, p)
        %2: f64[edges, 3] = mul.Tensor(%1, g)
        %3: f64[atoms, 3] = index_add(%0, 0, q, %2)
        %4: f64[] partial = sum(%3)
        %5: f64[] = mul.Tensor(%4, %4)
        %6: f64[] partial = neg(%4)
        %7: f64[atoms] = sum.dim_IntList(%3, [1])
        return [%5, %6, %7]
        """,
    )


def test_each_placement_says_which_rule_set_it() -> None:
    """For whoever asks why."""
    rules = [n.meta[META].rule for n in programs(energy)["place"].graph.graph.nodes if n.op == "call_function"]
    assert all(rules)
