"""Messages travel while interior rows are worked on: what runs meanwhile, and that it needs nothing of them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import toys
from adversaries import ADVERSARIES
from torch import Tensor

import distcompile
from distcompile import LocalWorld
from distcompile.runtime.division.plan import Division, SpacePlan
from distcompile.runtime.execution.tiles import Region
from distcompile.runtime.operators import buckets, messages
from distcompile.runtime.operators.messages import wait
from distcompile.runtime.world import Communicator, communicator

Events = dict[int, list[tuple[str, int]]]
"""By rank: messages that start and are waited for, by number, and rows that regions run over in part."""


class Watched(Communicator):
    """Notes when messages start and end, and sees that rows stay as they are while they are sent."""

    def __init__(self, events: Events) -> None:
        self.real, self.events = communicator(), events
        self.rank, self.size = self.real.rank, self.real.size

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        events, before = self.events[self.rank], rows.clone()
        number = sum(kind == "start" for kind, _ in events)
        events.append(("start", number))
        arrived = self.real.all_to_all_start(rows, send, receive)

        def watched() -> Tensor:
            assert torch.equal(rows, before), "rows changed under way"
            events.append(("wait", number))
            return arrived()

        return watched

    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        return self.real.all_reduce(value, reduction)

    def all_gather_objects(self, value: Any) -> list[Any]:
        return self.real.all_gather_objects(value)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    found: Events = defaultdict(list)
    run = Region.forward

    def noted(self: Region, rows: int, *args: Any, **kwargs: Any) -> list[Any]:
        if "only" in kwargs:
            first, end = kwargs["only"]
            found[communicator().rank].append(("rows", end - first))
        return run(self, rows, *args, **kwargs)

    monkeypatch.setattr(Region, "forward", noted)
    for module in (messages, buckets):
        monkeypatch.setattr(module, "communicator", lambda: Watched(found))
    return found


@pytest.fixture
def undefined_is_nan() -> Iterator[None]:
    """Memory that nobody has written to, as room for halo rows is before they come, holds NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, dtype=torch.float64).isnan().all()
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


MODELS = {"Gnn": {}, "ThreeBody": {"angles": True}}
"""Toy models, and the options of their graphs."""


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_worked_on_while_messages_travel(name: str, events: Events, undefined_is_nan: None) -> None:
    """Between the start of each message and the wait for it; and not on what it brings, which is NaN until then."""
    model = getattr(toys, name)().eval()
    graph = toys.random_graph(90, 2, **MODELS[name])
    dmodel = distcompile.compile(
        model, toys.random_graph(14, 1, **MODELS[name]), world=LocalWorld(2), validate=False, lowering="eager"
    )
    found, expected = dmodel(graph), model(graph)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)
    for rank in range(2):
        meanwhile = _rows_meanwhile(events[rank])
        assert meanwhile
        assert all(n > 0 for n in meanwhile), f"rank {rank}: {meanwhile}"


def _rows_meanwhile(events: list[tuple[str, int]]) -> list[int]:
    """Rows that a rank ran over while each of its messages was under way."""
    at = {event: i for i, event in enumerate(events) if event[0] != "rows"}
    numbers = [n for kind, n in at if kind == "start"]
    spans = [events[at["start", n] : at["wait", n]] for n in numbers]
    return [sum(n for kind, n in span if kind == "rows") for span in spans]


@pytest.mark.parametrize("name", ["line graphs of line graphs", "tensor products", "sums at both ends"])
def test_nothing_is_read_before_it_has_come(name: str, undefined_is_nan: None, events: Events) -> None:
    """With room for halo rows full of NaN until they come, and sent rows watched until they have arrived."""
    adversary = ADVERSARIES[name]
    model, graphs = adversary.model().eval(), adversary.graphs()
    dmodel = distcompile.compile(model, graphs[0], world=LocalWorld(3), validate=False, lowering="eager")
    for graph in graphs:
        found = dmodel(graph)
        for key, value in model(graph).items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)
    assert any(kind == "start" for kind, _ in events[0])


@pytest.mark.parametrize("interior", [0.0, 0.01, 0.5, 1.0])
def test_a_region_may_be_cut_anywhere(interior: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank all rows are interior, and any of them may be the first."""
    model, graph = toys.Gnn().eval(), toys.random_graph(40, 2)
    dmodel = distcompile.compile(model, toys.random_graph(14, 1), world=LocalWorld(1), validate=False, lowering="eager")
    plans = Division.for_rank

    def cut(self: Division, rank: int) -> dict[str, SpacePlan]:
        found = plans(self, rank)
        return {k: dataclasses.replace(p, interior=int(interior * len(p.owned))) for k, p in found.items()}

    monkeypatch.setattr(Division, "for_rank", cut)
    found = dmodel(graph)
    for key, value in model(graph).items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)


def test_a_reduction_waits_for_all_that_is_added() -> None:
    """The wait takes the table that the second part of the region has added to: no order but that of the graph."""
    dmodel = distcompile.compile(
        toys.Gnn().eval(), toys.random_graph(14, 1), world=LocalWorld(2), validate=False, lowering="eager"
    )
    tiled = dmodel.program.tiled
    assert tiled is not None
    waits = [n for n in tiled.graph.nodes if n.target is wait and n.args[0].args[0] == "reduce"]
    assert len(waits) == 2
    for node in waits:
        begin, table = node.args
        first, second = begin.args[1].args[0], table.args[0]
        assert second.kwargs["so_far"] is first
        assert second.kwargs["only"][0] == 0, "interior rows come second"
        assert first.kwargs["only"][0] is second.kwargs["only"][1]
