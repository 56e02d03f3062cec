"""What is sent and what is computed on halo rows: the cheapest choice, found by a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from printed import programs
from torch import Tensor

from distcompile.ir.text import short
from distcompile.passes.halos.cut_messages import Cut, HaloRows
from distcompile.rules.levels import levels


def table(x: Tensor, p: Tensor, q: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A sum that is multiplied by a matrix, and read."""
    h = torch.zeros_like(x).index_add(0, q, x[p].sin()) @ torch.ones(3, width, dtype=x.dtype)
    zeros = torch.zeros_like(h)
    return zeros.index_add(0, q, h[p]), zeros.index_add(0, q, h[p].sin())


def wide(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return table(x, p, q, 24)


def narrow(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return table(x, p, q, 2)


def choice(model: Callable[..., Any], sent: float) -> tuple[list[str], list[str]]:
    """What of a model is fetched and what computed, where sending a byte costs as much as reading so many."""
    program = programs(model)["share_exchanges"]
    cut = Cut(HaloRows(program, program.graph, levels(program), program.space("atoms")), sent)
    return sorted(map(short, cut.loaded)), sorted(map(short, cut.computed))


@pytest.mark.parametrize(
    ("model", "sent", "loaded", "computed"),
    [
        (wide, 10.0, ["index_add", "x"], ["mm"]),
        (wide, 0.01, ["mm", "x"], []),
        (narrow, 10.0, ["mm", "x"], []),
    ],
)
def test_the_cheapest(model: Callable[..., Any], sent: float, loaded: list[str], computed: list[str]) -> None:
    """The narrower one crosses, unless work is dearer than messages; the graph's own values are given."""
    assert choice(model, sent) == (loaded, computed)


def test_bytes_are_those_of_values_that_cross() -> None:
    """Of what is given, none."""
    program = programs(narrow)["share_exchanges"]
    assert Cut(HaloRows(program, program.graph, levels(program), program.space("atoms")), 10.0).bytes() == 2 * 8
