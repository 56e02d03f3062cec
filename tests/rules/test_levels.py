"""Which rows an operator works on, and how many barriers lie before it."""

from __future__ import annotations

import torch
from printed import programs
from torch import Tensor

from distcompile.ir.text import short
from distcompile.rules.levels import continues, levels


def model(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Two layers of messages and an energy."""
    h = torch.zeros_like(x).index_add(0, q, x[p].sin())
    h = torch.zeros_like(x).index_add(0, q, h.cos()[p].tan())
    return h.tanh(), h.exp().sum().sqrt()


def test_levels_of_two_layers() -> None:
    """A gather waits for its table, what reads a sum waits for the sum, and so does what needs the energy."""
    program = programs(model)["place"]
    found = [(short(n), w.kind, w.level, str(w.space)) for n, w in levels(program).items() if short(n) != "full"]
    assert found == [
        ("index_select", "row", 0, "edges"),
        ("sin", "row", 0, "edges"),
        ("index_add", "scatter", 0, "edges"),
        ("cos", "row", 1, "atoms"),
        ("index_select", "row", 2, "edges"),
        ("tan", "row", 2, "edges"),
        ("index_add", "scatter", 2, "edges"),
        ("tanh", "row", 3, "atoms"),
        ("exp", "row", 3, "atoms"),
        ("sum", "reduce", 3, "atoms"),
        ("sqrt", "whole", 4, "None"),
    ]


def two_sums(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, p, x[q]) + torch.zeros_like(x).index_add(0, q, x[p])


def test_sums_into_one_table_may_run_in_one_region() -> None:
    """The second adds to the first one's table, which nothing else uses."""
    graph = programs(two_sums)["merge_sums"].graph.graph
    first, second = [n for n in graph.nodes if short(n) == "index_add"]
    assert (continues(first), continues(second)) == (None, first)
