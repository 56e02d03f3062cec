"""Results carry gradients where those of the stock model do, in every mode, so that what follows a call may stay."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from processes import run_ranks
from torch import Tensor, nn
from toys import Gnn, Graph, Potential, random_graph

import distcompile
from distcompile import LocalWorld

EXAMPLE, OTHER = random_graph(12, 1), random_graph(19, 4)
Result = dict[str, Tensor]


class ByGradient(Gnn):
    """Forces by a gradient that is there to be differentiated in training only; energies stay as they are."""

    def forward(self, graph: Graph) -> Result:
        positions = graph["positions"].clone().requires_grad_()
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        energy, energies = self.energy(graph, vectors, vectors.norm(dim=-1))
        (gradient,) = torch.autograd.grad(energy, positions, retain_graph=True, create_graph=self.training)
        return {"energy": energy, "forces": -gradient, "energies": energies, "species": graph["species"] + 1}


class NeverDifferentiated(ByGradient):
    """As many packages do: forces are plain numbers, in training mode too."""

    def forward(self, graph: Graph) -> Result:
        result = super().forward(graph)
        return {name: value.detach() if name == "forces" else value for name, value in result.items()}


class Direct(Potential):
    """Forces by a layer of their own, detached in the end; the energy is not."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = Gnn()
        self.head = nn.Linear(1, 3).double()

    def forward(self, graph: Graph) -> Result:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        energy, energies = self.gnn.energy(graph, vectors, vectors.norm(dim=-1))
        with torch.no_grad():
            mean = energies.mean()
        return {"energy": energy, "forces": self.head(energies[:, None]).detach(), "mean": mean}


class OfPositions(nn.Module):
    """Without parameters: what carries gradients does so for the sake of its input."""

    def forward(self, graph: Graph) -> Result:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        energy = torch.exp(-vectors.square().sum(1)).sum()
        return {"energy": energy, "kept": energy.detach() * 2, "cell": graph["cell"] * 2}


def copied(graph: Graph, differentiable: bool) -> Graph:
    found = {name: value.clone() for name, value in graph.items()}
    found["positions"].requires_grad_(differentiable)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [ByGradient, NeverDifferentiated, Direct, OfPositions])
def test_results_require_gradients_where_those_of_the_stock_model_do(
    make: Callable[[], nn.Module], training: bool, ranks: int
) -> None:
    """Also where the example's positions required none."""
    model = make().train(training)
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(ranks))
    seen = set()
    for differentiable in (False, True):
        expected, found = model(copied(OTHER, differentiable)), compiled(copied(OTHER, differentiable))
        for name, value in expected.items():
            assert found[name].requires_grad is value.requires_grad, f"{name}, {differentiable=}"
            torch.testing.assert_close(found[name].detach(), value.detach(), rtol=1e-10, atol=1e-12)
            seen.add(value.requires_grad)
    assert seen == {True, False}
    assert compiled.captures == 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [ByGradient, Direct, OfPositions])
def test_what_carries_gradients_carries_those_of_the_stock_model(
    make: Callable[[], nn.Module], training: bool, ranks: int
) -> None:
    """Of a model that takes its own gradients too, in either mode."""
    model = make().train(training)
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(ranks))
    found = []
    for call in (model, compiled):
        graph = copied(OTHER, True)
        wanted = [graph["positions"], *model.parameters()]
        found.append(torch.autograd.grad(call(graph)["energy"].square(), wanted, allow_unused=True))
    assert float(found[0][0].abs().max()) > 1e-3
    for one, two in zip(*found, strict=True):
        assert (one is None or not one.any()) if two is None else True
        if one is not None and two is not None:
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_parameters_leave_nothing_to_differentiate(training: bool, ranks: int) -> None:
    model = Direct().train(training)
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(ranks))
    model.requires_grad_(False)
    assert not any(value.requires_grad for value in (*model(OTHER).values(), *compiled(OTHER).values()))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("first", [True, False], ids=["compiled in it", "compiled before"])
def test_modes_without_gradients(mode: Any, ranks: int, first: bool) -> None:
    """Results are as stock's, tensors of inference mode too, and later calls with gradients are not harmed."""
    model = Direct().eval()
    with mode() if first else nullcontext():
        compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(ranks))
    with mode():
        graph = {name: value.clone() for name, value in OTHER.items()}
        expected, found = model(graph), compiled(graph)
    for name, value in expected.items():
        assert (found[name].requires_grad, found[name].is_inference()) == (False, value.is_inference())
        torch.testing.assert_close(found[name].numpy(), value.numpy(), rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(call(OTHER)["energy"], model.gnn.readout.weight)[0] for call in (model, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("ranks", [1, 2])
def test_forces_of_a_model_that_takes_gradients_in_inference_mode(ranks: int) -> None:
    """Which the stock model cannot: its gradients are part of our program."""
    model = NeverDifferentiated().eval()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(ranks))
    expected = model(OTHER)
    with torch.inference_mode():
        found = compiled(OTHER)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].numpy(), value.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_in_the_mode_that_was_not_captured_a_model_with_forces_gives_plain_numbers() -> None:
    """What carries gradients in training is not known to do so elsewhere."""
    model = ByGradient().train()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(2))
    model.eval()
    assert not any(value.requires_grad for value in compiled(OTHER).values())
    torch.testing.assert_close(compiled(OTHER)["forces"], model(OTHER)["forces"], rtol=1e-10, atol=1e-12)


def energy_gradients(compiled: bool) -> list[Tensor]:
    """By positions and parameters, of a model in evaluation mode, for the ranks that there are."""
    model, graph = ByGradient().eval(), copied(OTHER, True)
    call = distcompile.compile(model, EXAMPLE) if compiled else model
    energy = call(graph)["energy"]
    return list(torch.autograd.grad(energy, [graph["positions"], model.readout.weight]))


def test_gradients_in_evaluation_on_processes() -> None:
    """They are computed when they are asked for, which every rank does."""
    for found in run_ranks(2, energy_gradients, True):
        for one, two in zip(found, energy_gradients(False), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
