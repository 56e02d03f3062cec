"""What `DistributedModel.stats` predicts about an evaluation, against what the evaluation does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld
from distcompile.ir import Tiled
from distcompile.passes import run
from distcompile.predict import by_rank, fit
from distcompile.predict.account import work
from distcompile.runtime.execution import memory
from distcompile.runtime.execution.memory import Free, left_in_groups, share
from distcompile.runtime.operators import messages
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

        def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
            received[self.real.rank] += sum(receive) * math.prod(rows.shape[1:]) * rows.element_size()
            return self.real.all_to_all_start(rows, send, receive)

        def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
            return self.real.all_reduce(value, reduction)

    on_ranks = model.on(LocalWorld(parts))
    rows = on_ranks.stats(graph)
    monkeypatch.setattr(messages, "communicator", Counting)
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
    one, two = (model.stats(toys.random_graph(n, 2))[0]["peak_memory"] for n in (800, 1600))
    assert 1.6 < two / one < 2.6
    halves = model.on(LocalWorld(2)).stats(toys.random_graph(1600, 2))
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


@pytest.mark.parametrize("fits", [fit.CHEAPER[0], fit.CHEAPER[1], fit.HOLD, fit.DEARER[0]])
def test_as_much_is_held_as_fits(fits: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory for what is stored, more is computed again: another tiling, the same numbers."""
    tried = list[float]()
    stock = toys.Gnn().eval()
    graph = toys.random_graph(30, 3)
    expected = stock(graph)
    world = LocalWorld(2)
    model = distcompile.compile(stock, toys.random_graph(14, 1), memory=10**9, world=world, validate=False)
    peak, held = by_rank.peak_bytes, {id(model.program.tiled): fit.HOLD}

    def tiled(program: Tiled, stages: Any, **options: Any) -> Any:
        (stage,) = stages
        tried.append(stage.passes[0].keywords["hold"])
        found = run(program, stages, **options)
        held[id(found.tiled)] = tried[-1]
        return found

    monkeypatch.setattr(fit, "run", tiled)
    monkeypatch.setattr(
        by_rank, "peak_bytes", lambda p, *rest: peak(p, *rest) * (10**6 if held[id(p.tiled)] < fits else 1)
    )
    found = model(graph)
    assert held[id(model.program.tiled)] == fits
    assert tried == [hold for hold in (*fit.CHEAPER, *fit.DEARER) if hold <= fits]
    for name in ("energy", "forces", "stress"):
        assert torch.allclose(found[name], expected[name], rtol=1e-12, atol=1e-12)


class Wide(toys.Gnn):
    """Narrow weights of messages that take much work."""

    def __init__(self) -> None:
        super().__init__()
        self.radial = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 512), nn.Tanh(), nn.Linear(512, 8, bias=False)) for _ in self.radial
        ).double()


def test_what_memory_holds_is_not_computed_again() -> None:
    """With `memory=` fewer products are computed than where nothing is said."""
    graph, stock = toys.random_graph(60, 3), toys.seeded(Wide()).eval().requires_grad_(False)
    found, products = [], []
    for given in (None, 10**9):
        example, world = toys.random_graph(14, 1), LocalWorld(2)
        model = distcompile.compile(stock, example, memory=given, world=world, validate=False)
        found.append(model(graph))
        products.append(work(model.program).rows["edges"].flops)
    assert 0 < products[1] < 0.9 * products[0]
    for name in ("energy", "forces", "stress"):
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-12, atol=1e-12)


def test_without_a_limit_it_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that takes more than there is stores less, and is refused if that does not suffice."""
    graph = toys.random_graph(30, 3)
    model = distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), validate=False)
    stored, peak = model.program.tiled, by_rank.peak_bytes
    need = model.stats(graph)[0]["peak_memory"]
    monkeypatch.setattr(memory, "available", lambda: int(1.2 * need))
    monkeypatch.setattr(by_rank, "peak_bytes", lambda p, *rest: peak(p, *rest) // (1 if p.tiled is stored else 2))
    model(graph)
    assert model.program.tiled is not stored
    assert model.stats(graph)[0]["peak_memory"] < 0.8 * need
    monkeypatch.setattr(memory, "available", lambda: 2 * need)
    model(toys.random_graph(30, 4))
    assert model.program.tiled is stored  # there is room again
    monkeypatch.setattr(memory, "available", lambda: need // 100)
    with pytest.raises(distcompile.InputError, match=r"more than what is free there .* ranks or more"):
        model(graph)
    monkeypatch.setattr(memory, "available", lambda: None)
    model(graph)


def test_ranks_share_what_their_machine_has() -> None:
    ranks = [Free("a", 30), Free("a", 32), Free("b", 12), Free("c", 100)]
    assert share(ranks) == 12
    assert share(ranks[:2]) == 15
    assert share([*ranks, Free("d", None)]) is None


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_limit_what_is_free(tmp_path: Path, version: int) -> None:
    """A job's group inside a larger one: each may be the one that binds; files in memory make room."""
    top = tmp_path / "memory" if version == 1 else tmp_path
    job = top / "slurm" / "job_7"
    job.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for group, limit, used in ((job, "1000", "300"), (job.parent, "800" if version == 1 else "max", "500")):
        (group / names[0]).write_text(limit + "\n")
        (group / names[1]).write_text(used + "\n")
    (job / "memory.stat").write_text("anon 200\ninactive_file 50\n")
    line = "4:memory:/slurm/job_7" if version == 1 else "0::/slurm/job_7"
    found = list(left_in_groups(f"9:name=systemd:/\n{line}\n", tmp_path))
    assert found == ([750, 300] if version == 1 else [750])
