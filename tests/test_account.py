"""What `DistributedModel.stats` predicts about an evaluation, against what the evaluation does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld, api
from distcompile.passes.tile import tile
from distcompile.runtime import halo
from distcompile.runtime.world import communicator

MODELS = {"Pair": {}, "Gnn": {}, "Eam": {"half": True}}
"""Toy models, and the options of their graphs."""


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_predicted_bytes_are_those_received(name: str, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In halo exchanges a rank receives what it reads, in reductions what others added to its rows.

    Summed over ranks both are the halo rows, so the sum is held to the byte.
    """
    model = distcompile.compile(getattr(toys, name)().eval(), toys.random_graph(14, 1, **MODELS[name]), validate=False)
    graph = toys.random_graph(40, 2, **MODELS[name])
    received: Counter[int] = Counter()

    class Counting:
        def __init__(self) -> None:
            self.real = communicator()

        def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
            result = self.real.all_to_all(rows, send, receive)
            received[self.real.rank] += result.numel() * result.element_size()
            return result

        def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
            return self.real.all_reduce(value, reduction)

    on_ranks = model.on(LocalWorld(parts))
    rows = on_ranks.stats(graph)
    monkeypatch.setattr(halo, "communicator", Counting)
    on_ranks(graph)
    assert sum(row["bytes"] for row in rows) == sum(received.values())
    assert (sum(received.values()) > 0) == (parts > 1)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_rows_are_those_of_the_graph(parts: int) -> None:
    """Every atom and edge is owned once; ranks do not hold more than the whole."""
    model = distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), world=LocalWorld(parts), validate=False)
    graph = toys.random_graph(40, 2)
    rows = model.stats(graph)
    assert [row["rank"] for row in rows] == list(range(parts))
    assert sum(row["owned"]["atoms"] for row in rows) == 40
    assert sum(row["owned"]["edges"] for row in rows) == graph["edge_index"].shape[1]
    assert all(row["owned"]["atoms"] + row["halo"]["atoms"] <= 40 for row in rows)
    assert all(row["halo"]["edges"] == 0 for row in rows)


def test_memory_grows_with_the_graph_and_shrinks_with_ranks() -> None:
    model = distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), validate=False)
    one, two = (model.stats(toys.random_graph(n, 2))[0]["peak_memory"] for n in (200, 400))
    assert 1.6 < two / one < 2.6
    halves = model.on(LocalWorld(2)).stats(toys.random_graph(400, 2))
    assert max(row["peak_memory"] for row in halves) < 0.85 * two


class Normalised(toys.Gnn):
    """A model with features of the cell, which are whole on every rank, normalised by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3).double()

    def energy(self, graph: Any, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, energies = super().energy(graph, vectors, lengths)
        total = torch.stack([energy, energy**2, energy.sin()])
        return self.norm(total).pow(3).sum() + energy, energies


def test_operators_with_several_results_count() -> None:
    """The backward pass of a layer norm on values that are whole on every rank."""
    model = distcompile.compile(Normalised().eval(), toys.random_graph(14, 1), validate=False)
    assert model.stats(toys.random_graph(20, 1))[0]["peak_memory"] > 0


def test_a_graph_that_does_not_fit_is_held_leaner(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little memory for what is stored, more is computed again: another tiling, the same numbers."""
    dear = list[float]()
    stock = toys.Gnn().eval()
    graph = toys.random_graph(30, 3)
    expected = stock(graph)
    model = distcompile.compile(stock, toys.random_graph(14, 1), memory=10**9, world=LocalWorld(2))
    before = model.program.tiled
    peak = api.peak_bytes
    monkeypatch.setattr(api, "peak_bytes", lambda p, *rest: peak(p, *rest) * (10**6 if p.tiled is before else 1))
    monkeypatch.setattr(api, "tile", lambda program, hold: (dear.append(hold), tile(program, hold))[1])
    found = model(graph)
    assert dear == [api.DEARER[0]]
    assert model.program.tiled is not before
    for name in ("energy", "forces", "stress"):
        assert torch.allclose(found[name], expected[name], rtol=1e-12, atol=1e-12)
