"""Less is sent, and the numbers stay: what crosses, in which form, in how many messages; each pass left out in turn."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from adversaries import ADVERSARIES, Toy, add_to, plain
from left_out import OPTIONAL, compiled
from programs import model as stock
from torch import Tensor, nn
from toys import Graph, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld, testing
from distcompile import model as compiled_model
from distcompile.capture.trace import capture
from distcompile.passes.halos.bundle_all_reduces import bundle_all_reduces
from distcompile.passes.halos.narrow_halos import narrow_halos
from distcompile.passes.halos.thin_messages import thin_messages
from distcompile.passes.spaces.once_per_kind import once_per_kind
from distcompile.predict.account import Collective, collectives
from distcompile.testing import check_model

SEVERAL = ("line graphs of line graphs", "tensor products", "charge equilibration", "sums at both ends")
"""Models that have something to save."""


class Layers(Toy):
    """As many layers as asked for; what an edge reads of its sender is `WIDE` features made of `F`."""

    WIDE = 40

    def __init__(self, layers: int) -> None:
        self.layers = layers
        super().__init__()

    def more(self) -> None:
        self.up = nn.Linear(6, self.WIDE)
        self.down = nn.Linear(self.WIDE, 6)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(self.layers):
            message = self.up(h)[sender] * self.up(h)[receiver] ** 2
            h = torch.tanh(h + self.mix(self.down(add_to(message * self.up(w), receiver, h))))
        return h


class Dear(Toy):
    """Features of a species are a page of work: they are sent."""

    def more(self) -> None:
        self.into = nn.Linear(6, 512)
        self.deep = nn.ModuleList(nn.Linear(512, 512) for _ in range(6))
        self.out = nn.Linear(512, 6)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        x = self.into(h)
        for layer in self.deep:
            x = torch.tanh(layer(x))
        x = self.out(x)
        return torch.tanh(self.mix(h + add_to(w * x[sender], receiver, h)))


class Bent(Toy):
    """Edges are changed by angles, then read at both ends; those in no angle stay what their lengths made them."""

    def more(self) -> None:
        self.change = nn.Linear(6, 6)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        one, two = graph["angles"]
        e = w
        for _ in range(2):
            e = e + torch.tanh(self.change(add_to(e[one] * e[two], two, e)))
            h = torch.tanh(h + add_to(e[graph["reverse"]] * h[sender], receiver, h))
        return h


def with_reverse(n_atoms: int, seed: int, kept: float) -> Graph:
    """A graph in which each edge reads another, and few edges are in an angle."""
    graph = random_graph(n_atoms, seed, angles=True)
    n_edges = graph["edge_index"].shape[1]
    chosen = graph["angles"].amax(0) < kept * n_edges
    return {**graph, "angles": graph["angles"][:, chosen], "reverse": torch.arange(n_edges).flip(0)}


def crossing(model: DistributedModel, to_owners: bool) -> list[Collective]:
    """What crosses on its way to readers, or back to owners."""
    return [c for c in collectives(model.program) if c.space and c.to_owners == to_owners]


def row_bytes(model: DistributedModel) -> int:
    """Bytes for each halo row of an evaluation."""
    return sum(c.row_bytes for c in collectives(model.program) if c.space)


def check(model: nn.Module, program: DistributedModel, graphs: list[Any]) -> None:
    """Every output, on any number of ranks, some of them empty."""
    with mock.patch.object(testing, "compile", return_value=program):
        check_model(model, graphs[0], graphs[1:], (1, 2, 3), relative=1e-11)


def test_what_is_made_of_species_and_positions_is_not_sent() -> None:
    """One layer: every rank has the graph, and computes what its halo rows give; forces alone go back."""
    model = Layers(1).eval()
    program = compiled(model, random_graph(14, 1))
    assert crossing(program, False) == []
    assert [c.row_bytes for c in crossing(program, True)] == [3 * 8]
    assert [c.row_bytes for c in crossing(compiled(model, random_graph(14, 1), narrow_halos), False)] == [24, 40 * 8]
    check(model, program, plain())


def test_values_and_gradients_cross_where_they_are_narrowest() -> None:
    """Three layers: 6 features cross forward instead of 40, and 6 of their gradient back; none after the last layer."""
    model = Layers(3).eval()
    program = compiled(model, random_graph(14, 1))
    assert [(c.kind, c.row_bytes) for c in crossing(program, False)] == [("halo_gather", 6 * 8)] * 2
    assert sorted((c.kind, c.row_bytes) for c in crossing(program, True)) == [
        ("halo_reduce", 24), ("halo_scatter", 6 * 8), ("halo_scatter", 6 * 8),
    ]  # fmt: skip
    assert row_bytes(program) < 0.3 * row_bytes(compiled(model, random_graph(14, 1), narrow_halos))
    check(model, program, plain())


def test_what_is_dear_to_compute_is_sent() -> None:
    """Unless it is computed for each kind of atom only."""
    model = Dear().eval()
    assert crossing(compiled(model, random_graph(14, 1)), False) == []
    program = compiled(model, random_graph(14, 1), once_per_kind)
    assert [c.row_bytes for c in crossing(program, False)] == [6 * 8]
    check(model, program, plain())


def test_rows_that_nothing_was_added_to_stay_where_they_are() -> None:
    """Of the changes of edges cross those of edges in an angle: what crosses follows the angles, not the edges."""
    model = Bent().eval()
    graphs = [with_reverse(14, 1, 1.0), with_reverse(20, 2, 0.3), with_reverse(6, 3, 0.0)]
    thin, full = (compiled(model, graphs[0], *without) for without in ((), (thin_messages,)))
    some = [(c.kind, c.row_bytes) for c in collectives(thin.program) if c.space == "edges of angles_1"]
    assert some == [("halo_gather", 48)] * 2
    moved = [
        sum(rank["bytes"] for rank in program.on(LocalWorld(3)).stats(with_reverse(60, 5, kept)))
        for program in (thin, full)
        for kept in (0.1, 1.0)
    ]
    assert moved[0] < 0.75 * moved[2]
    assert moved[1] <= moved[3]
    check(model, thin, graphs)


def test_sums_over_ranks_share_a_message() -> None:
    """Energy and stress are whole by one message, which is the last; sums that are read again have their own."""
    model = Layers(1).eval()
    one, each = (compiled(model, random_graph(14, 1), *without) for without in ((), (bundle_all_reduces,)))
    assert [c.kind for c in collectives(one.program) if not c.space] == ["all_reduces"]
    assert [c.kind for c in collectives(each.program) if not c.space] == ["all_reduce"] * 2
    assert sum(c.row_bytes for c in collectives(one.program) if not c.space) == 80
    charges = ADVERSARIES["charge equilibration"]
    found = [c for c in collectives(compiled(charges.model().eval(), charges.graphs()[0]).program) if not c.space]
    assert [c.kind for c in found] == ["all_reduce"] * 4 + ["all_reduces"]


@pytest.mark.parametrize("left_out", OPTIONAL, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", SEVERAL)
def test_every_pass_that_saves_may_be_left_out(name: str, left_out: Any) -> None:
    adversary = ADVERSARIES[name]
    model, graphs = adversary.model().eval(), adversary.graphs()
    check(model, compiled(model, graphs[0], left_out), graphs)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [(name, left_out) for name in ("mace", "chgnet") for left_out in ((), OPTIONAL)],
    ids=lambda x: x if isinstance(x, str) else "-".join(p.__name__ for p in x) or "none",
)
def test_models_are_exact_without_each_pass(name: str, left_out: tuple[Any, ...]) -> None:
    """On three ranks, against the stock model, with all passes and without those that save; bytes never grow."""
    given = stock(name)
    model, example = given.make(), given.example()
    call = captured(name)  # not within another capture
    with mock.patch.object(compiled_model, "capture", lambda *_: call):
        program, without = (compiled(model, example, *p, model_kwargs=given.kwargs) for p in (left_out, OPTIONAL))
    with mock.patch.object(testing, "compile", return_value=program):
        check_model(model, example, [given.other()], (3,), model_kwargs=given.kwargs)
    assert row_bytes(program) <= row_bytes(without)


@functools.cache
def captured(name: str) -> Any:
    """A model's call as it was captured, once for all pipelines."""
    given = stock(name)
    found: list[Any] = []

    def note(*args: Any) -> Any:
        found.append(capture(*args))
        return found[-1]

    with mock.patch.object(compiled_model, "capture", note):
        distcompile.compile(
            given.make(), given.example(), model_kwargs=given.kwargs, world=LocalWorld(1), validate=False
        )
    return found[0]
