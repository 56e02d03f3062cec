"""Sums that are added up go into one table: fewer reductions, less memory, and the same numbers."""

from __future__ import annotations

from typing import Any
from unittest import mock

import left_out
import pytest
import torch
from adversaries import Toy, add_to
from torch import Tensor
from toys import Graph, random_graph

import distcompile
from distcompile import LocalWorld, testing
from distcompile.passes.halos.merge_sums import merge_sums
from distcompile.passes.halos.narrow_halos import narrow_halos
from distcompile.rules.levels import continues, is_simple
from distcompile.runtime.execution.tiles import Add, Region
from distcompile.runtime.operators.halo import halo_reduce
from distcompile.testing import check_model


class BothEnds(Toy):
    """Messages go to both ends of an edge, and the sums of both are added up."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        to_receivers, to_senders = add_to(w * h[sender], receiver, h), add_to(w * h[receiver], sender, h)
        return torch.tanh(self.mix(h + to_receivers + to_senders))


class ReadOften(Toy):
    """Features that are read by three layers: their gradient is a sum over the edges of all of them."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        first = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        h = first
        for _ in range(3):
            h = torch.tanh(self.mix(h + add_to(w * first[sender] * first[receiver] * h[receiver], receiver, h)))
        return h


class InTwoForms(Toy):
    """A sum into rows, the same rows by element, and a sum that something else reads too."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        message = w * h[sender]
        read_twice = add_to(message**2, sender, h)
        where = sender[:, None] + torch.zeros(h.shape[1], dtype=torch.int64)  # one number for each element
        by_element = torch.zeros_like(h).scatter_add(0, where, message)
        total = add_to(message, receiver, h) + by_element + read_twice
        return torch.tanh(self.mix(h + total)) + torch.tanh(read_twice)


class TwoSpaces(Toy):
    """Edges and angles add to one table of atoms."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        one, two = graph["angles"]
        bent = w[one] * w[two] * (vectors[one] * vectors[two]).sum(-1, keepdim=True)
        return torch.tanh(self.mix(add_to(w * h[sender], receiver, h) + 0.1 * h + add_to(bent, sender[two], h)))


class Twice(Toy):
    """One sum, added up with itself."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, _ = graph["edge_index"]
        total = add_to(w * h[sender], sender, h)
        return torch.tanh(self.mix(h + (total + total)))


class ToParents(Toy):
    """Sums that are added, as rows, to the very table that holds them."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, _ = graph["edge_index"]
        total = add_to(w * h[sender], sender, h)
        return torch.tanh(self.mix(h + total.index_add(0, graph["parents"], total)))


class ToItself(Toy):
    """A table that is read whole and row by row in one region: by a sum through ``arange``."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, _ = graph["edge_index"]
        total = add_to(w * h[sender], sender, h)
        return torch.tanh(self.mix(h + total.index_add(0, torch.arange(h.shape[0]), total)))


MODELS: dict[str, tuple[type[Toy], int, int]] = {
    "both ends": (BothEnds, 2, 2),
    "read often": (ReadOften, 4, 2),
    "in two forms": (InTwoForms, 3, 2),
    "two spaces": (TwoSpaces, 4, 4),
}
"""Models, and the halo reductions without and with the pass."""


def compiled(model: Toy, without: bool = False) -> distcompile.DistributedModel:
    """A model compiled with the pass, or without; sums on halo rows, which would be added up too, are as inserted."""
    return left_out.compiled(model, graph_of(14), narrow_halos, *([merge_sums] if without else []))


def graph_of(n_atoms: int, seed: int = 1, **options: Any) -> Graph:
    """A graph with edges and angles."""
    return random_graph(n_atoms, seed, angles=True, **options)


def reductions(model: distcompile.DistributedModel) -> int:
    """How many halo reductions an evaluation makes."""
    return sum(n.target is halo_reduce for n in model.graph_module.graph.nodes)


def sums(model: distcompile.DistributedModel) -> list[Add]:
    """What the regions of a model add into tables."""
    regions = [r for r in model.program.tiled.children() if isinstance(r, Region)]
    return [result for r in regions for result in r.spec.results if isinstance(result, Add)]


@pytest.mark.parametrize("name", MODELS)
def test_fewer_reductions_and_the_same_numbers(name: str) -> None:
    """On any number of ranks, some of them empty, in every output."""
    kind, before, after = MODELS[name]
    model = kind().eval()
    apart, together = compiled(model, without=True), compiled(model)
    assert (reductions(apart), reductions(together)) == (before, after)
    with mock.patch.object(testing, "compile", return_value=together):
        check_model(model, graph_of(14), [graph_of(20, 2), graph_of(6, 3, volume=1e6)], (1, 2, 3), relative=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_one_region_adds_twice_into_one_table(name: str) -> None:
    """Sums of one level stay together: none waits for another because it shares its table."""
    model = MODELS[name][0]().eval()
    apart, together = compiled(model, without=True), compiled(model)
    assert len(_regions(together)) <= len(_regions(apart))
    assert all(s.after is None for s in sums(apart))
    assert sum(s.after is not None for s in sums(together)) >= 1
    assert all(s.reuse for s in sums(together))


def _regions(model: distcompile.DistributedModel) -> list[Any]:
    return list(model.program.tiled.children())


def test_a_table_that_is_read_elsewhere_is_left_alone() -> None:
    """Of the three sums of `InTwoForms`, the one with a second reader keeps a table of its own."""
    graph = compiled(InTwoForms().eval()).graph_module.graph
    forward = [n for n in graph.nodes if n.op == "call_function" and is_simple(n)][:3]
    chained = [n for n in forward if continues(n) is not None]
    assert [str(n.target) for n in chained] == ["aten.scatter_add.default"]
    (apart,) = [n for n in forward if n not in chained and n is not continues(chained[0])]
    assert len(apart.users) == 2


@pytest.mark.parametrize("kind", [Twice, ToParents, ToItself])
def test_a_sum_that_meets_itself_is_left_alone(kind: type[Toy]) -> None:
    def graph(n_atoms: int, seed: int, **options: Any) -> Graph:
        return {**graph_of(n_atoms, seed, **options), "parents": (5 * torch.arange(n_atoms) + 3) % n_atoms}

    check_model(kind().eval(), graph(14, 1), [graph(20, 2), graph(6, 3, volume=1e6)], (1, 2, 3), relative=1e-12)


def test_one_table_crosses_once() -> None:
    model = ReadOften().eval()
    apart, together = compiled(model, without=True).on(LocalWorld(3)), compiled(model).on(LocalWorld(3))
    received = [sum(rank["bytes"] for rank in v.stats(graph_of(60, 5))) for v in (apart, together)]
    assert received[1] < 0.75 * received[0]
