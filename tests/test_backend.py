"""``torch.compile(model, backend="distmlip")``: any piece of a model that Dynamo hands over runs on N ranks.

Gradients are taken outside, inside, and of forces; each must be the stock model's on every number of ranks.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adversaries import F, add_to
from torch import Tensor, nn
from toys import N_SPECIES, Gnn, Graph, gaussians, random_graph, seeded

import distcompile
from distcompile import LocalWorld
from distcompile.backend import distmlip

RANKS = (1, 2, 3)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Dynamo keeps what it compiled for a module's code; every test starts anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class EnergyOnly(nn.Module):
    """Energies of atoms from positions; the caller differentiates."""

    def __init__(self, species: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(species, F)
        self.radial = nn.Linear(6, F, bias=False)
        self.mix = nn.Linear(F, F)
        self.readout = nn.Linear(F, 1)
        seeded(self)

    def forward(self, positions: Tensor, graph: Graph) -> Tensor:
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        w = self.radial(gaussians(vectors.norm(dim=-1)))
        h = self.embedding(graph["species"])
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        return self.readout(h).sum()


class ForcesInside(EnergyOnly):
    """Energy and forces, which can be differentiated again."""

    def forward(self, positions: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        positions = positions.detach().requires_grad_()
        energy = super().forward(positions, graph)
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=self.training)
        return energy, -gradient


def graphs() -> list[Graph]:
    """Graphs of two sizes."""
    return [random_graph(n, seed=n, cutoff=2.6) for n in (10, 17)]


def on_ranks(model: nn.Module, ranks: int) -> Any:
    """The model compiled by ``torch.compile`` for virtual ranks."""
    return torch.compile(model, backend="distmlip", options={"world": LocalWorld(ranks)})


def same(ours: Tensor | None, stock: Tensor) -> None:
    """Equal to rounding."""
    assert ours is not None
    torch.testing.assert_close(ours, stock, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_gradient_taken_outside_gives_the_forces(ranks: int) -> None:
    """Energy and forces of two sizes; the model itself takes no gradient."""
    model = EnergyOnly()
    compiled = on_ranks(model, ranks)
    for graph in graphs():
        results = []
        for function in (compiled, model):
            positions = graph["positions"].clone().requires_grad_()
            energy = function(positions, graph)
            results.append((energy.detach(), torch.autograd.grad(energy, positions)[0]))
        same(results[0][0], results[1][0])
        same(results[0][1], results[1][1])
        assert float(results[1][1].abs().max()) > 1e-2


@pytest.mark.parametrize("ranks", RANKS)
def test_a_gradient_taken_inside_is_left_to_dynamo(ranks: int) -> None:
    """Dynamo cuts the model at ``torch.autograd.grad``; each piece is distributed."""
    model = ForcesInside().eval()
    compiled = on_ranks(model, ranks)
    for graph in graphs():
        for ours, stock in zip(compiled(graph["positions"], graph), model(graph["positions"], graph), strict=True):
            same(ours, stock.detach())


@pytest.mark.parametrize("ranks", RANKS)
def test_a_training_step(ranks: int) -> None:
    """``backward`` leaves the stock model's gradient on every parameter, and two optimiser steps the same weights."""
    stock, ours = EnergyOnly(), EnergyOnly()
    compiled = on_ranks(ours, ranks)
    optimisers = [torch.optim.SGD(m.parameters(), lr=1e-2) for m in (stock, ours)]
    for graph in graphs():
        for function, optimiser in zip((stock, compiled), optimisers, strict=True):
            optimiser.zero_grad()
            (function(graph["positions"], graph) - 1.0).square().backward()
        for (name, p), q in zip(stock.named_parameters(), ours.parameters(), strict=True):
            assert float(p.grad.abs().max()) > 1e-3, name
            same(q.grad, p.grad)
        for optimiser in optimisers:
            optimiser.step()
    for p, q in zip(stock.parameters(), ours.parameters(), strict=True):
        same(q.detach(), p.detach())
        assert not torch.equal(p, dict(EnergyOnly().named_parameters())["mix.weight"])


@pytest.mark.parametrize("ranks", RANKS)
def test_training_on_forces(ranks: int) -> None:
    """A loss on forces that are a gradient taken outside: second derivatives of the distributed energy."""
    model = EnergyOnly()
    parameters = list(model.parameters())
    compiled = on_ranks(model, ranks)
    for graph in graphs():
        found = []
        for function in (compiled, model):
            positions = graph["positions"].clone().requires_grad_()
            energy = function(positions, graph)
            (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
            loss = (forces**2).sum() + 0.1 * energy
            found.append(torch.autograd.grad(loss, [*parameters, positions]))
        for ours, stock in zip(*found, strict=True):
            same(ours, stock)


def test_a_stock_potential_in_a_dict() -> None:
    """A whole potential with forces and stress inside, that takes and returns dicts."""
    model = Gnn()
    model.embedding = seeded(nn.Embedding(5, 8))
    for ranks in RANKS:
        torch._dynamo.reset()
        compiled = on_ranks(model, ranks)
        for graph in graphs():
            found, expected = compiled(graph), model(graph)
            assert found.keys() == expected.keys()
            for name in expected:
                same(found[name].detach(), expected[name])


def test_a_model_of_three_species() -> None:
    """Dynamo hands parameters over as inputs, so that a table of species looks like a table of the graph."""
    model = EnergyOnly(species=N_SPECIES)
    graph = graphs()[0]
    same(on_ranks(model, 2)(graph["positions"], graph).detach(), model(graph["positions"], graph).detach())


def test_sizes_are_symbolic_from_the_first_call_on() -> None:
    """Graphs of five sizes are served by one compilation."""
    counted = []

    def backend(graph_module: Any, inputs: Any, **options: Any) -> Any:
        piece = distmlip(graph_module, inputs, options={"world": LocalWorld(2)})
        counted.append(graph_module)
        return piece

    model = EnergyOnly()
    compiled = torch.compile(model, backend=backend)
    for n in (10, 17, 5, 12, 30):
        graph = random_graph(n, seed=n, cutoff=2.6)
        same(compiled(graph["positions"], graph).detach(), model(graph["positions"], graph).detach())
    assert len(counted) == 1


def test_a_piece_without_pointers_runs_as_it_is() -> None:
    """Functions that read no rows need no ranks."""
    x = torch.randn(6, 3, dtype=torch.float64)
    compiled = torch.compile(lambda x: torch.sin(x) @ x.T, backend="distmlip", options={"world": LocalWorld(2)})
    assert torch.equal(compiled(x), torch.sin(x) @ x.T)


def test_unknown_options_are_refused_by_name() -> None:
    """The message names the option and those that exist."""
    with pytest.raises(ValueError, match=r"unknown option ranks.*world, lowering, memory, radial_error"):
        distmlip(torch.fx.symbolic_trace(nn.Identity()), [], options={"ranks": 2})
    compiled = torch.compile(EnergyOnly(), backend="distmlip", options={"ranks": 2})
    graph = graphs()[0]
    with pytest.raises(Exception, match="unknown option ranks"):
        compiled(graph["positions"], graph)


def test_memory_is_a_limit_here_too() -> None:
    """Options reach the compiler: a limit that is too small refuses to run."""
    compiled = torch.compile(EnergyOnly(), backend="distmlip", options={"memory": 1000})
    graph = graphs()[0]
    with pytest.raises(distcompile.InputError, match="memory=1000"):
        compiled(graph["positions"], graph)


def test_the_backend_is_found_by_its_name() -> None:
    """An installed package registers it with Dynamo; nothing has to be imported first."""
    (entry,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="distmlip")
    assert entry.load() is distmlip
    assert "distmlip" in torch._dynamo.list_backends()
