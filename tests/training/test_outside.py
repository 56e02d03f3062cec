"""Gradients that a caller takes of results: of a large graph by a program of their own, within the same memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structures
import torch
from allocated import peak
from processes import run_ranks
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld, outside
from training.models import Graph, Model, given, loss
from training.test_training_step import CRYSTAL, EXACT, gradients, same, stock


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Autograd may keep nothing. The list is filled with the gradients that a program gave."""
    found: list[Any] = []
    call = outside.Outside.__call__

    def noted(self: Any, *args: Any) -> Any:
        found.append(call(self, *args))
        return found[-1]

    monkeypatch.setattr(outside, "MANY", 0)
    monkeypatch.setattr(outside.Outside, "__call__", noted)
    yield found


def compiled(model: nn.Module, ranks: int = 1, **options: Any) -> Any:
    return distcompile.compile(model, given(CRYSTAL)[0], world=LocalWorld(ranks), lowering="eager", **options)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_training_loop(ranks: int, always: list[Any]) -> None:
    """Gradients of weights are those of the stock model, for other structures and other parts of the loss."""
    model = Model()
    dmodel = compiled(model, ranks)
    for of in ([structures.film()], [structures.small_cell(), structures.cluster()]):
        graph, targets = given(*of)
        _, expected = stock(model, graph, targets)
        loss(dmodel(graph), targets)[0].backward()
        same(gradients(model), expected)
        model.zero_grad()
    _, expected = stock(model, graph, targets, loss=lambda result, targets: result["blocks"].square().sum())
    dmodel(graph)["blocks"].square().sum().backward()
    same(gradients(model), expected)
    assert len(always) == 3 and None not in always


class Energies(nn.Module):
    """Of atoms, by positions that the caller differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.rand(40, 40, dtype=torch.float64))

    def forward(self, graph: Graph) -> Tensor:
        first, second = graph["edges"]
        lengths = (graph["positions"][second] - graph["positions"][first] + graph["shifts"]).norm(dim=1)
        pairs = self.depth[graph["species"][first], graph["species"][second]] * torch.exp(-lengths)
        return torch.zeros_like(graph["positions"][:, 0]).index_add(0, first, pairs)


@pytest.mark.parametrize("ranks", [1, 3])
def test_forces_and_second_derivatives_from_outside(ranks: int, always: list[Any]) -> None:
    """By positions and weights; what is differentiated once more is left to autograd."""
    model = Energies()
    dmodel = compiled(model, ranks)

    def taken(model: Any) -> list[Tensor]:
        graph = dict(given(structures.film())[0])
        x = graph["positions"] = graph["positions"].requires_grad_()
        (forces,) = torch.autograd.grad(model(graph).sum(), x)
        energy = model(graph).square().sum()
        (twice,) = torch.autograd.grad(energy, x, create_graph=True)
        weights = torch.autograd.grad(twice.square().sum(), model.module.depth if model is dmodel else model.depth)
        return [forces, twice.detach(), *weights]

    expected = taken(model)
    for found, wanted in zip(taken(dmodel), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)
    assert len(always) == 2  # of forces, and of what the gradient of weights goes through


def test_what_changes_before_the_gradient_is_taken(always: list[Any]) -> None:
    """The evaluation could not be repeated."""
    model = Model()
    dmodel = compiled(model)
    graph, targets = given(CRYSTAL)
    value = loss(dmodel(graph), targets)[0]
    graph["shifts"] += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def _train_here() -> dict[str, Tensor]:
    outside.MANY = 0
    model = Model()
    dmodel = distcompile.compile(model, given(CRYSTAL)[0], lowering="eager", validate=False)
    graph, targets = given(structures.film())
    loss(dmodel(graph), targets)[0].backward()
    outside.MANY = 2**28
    return gradients(model)


def test_processes() -> None:
    """On two processes, too."""
    expected = stock(Model(), *given(structures.film()))[1]
    for found in run_ranks(2, _train_here):
        same(found, expected)


def test_memory_is_bounded() -> None:
    """What the user allows holds for the gradient, too: far less than what autograd keeps."""
    model, (graph, targets) = Model(width=32), given(structures.crystal((6, 5, 5)))
    tiled, kept = compiled(model, memory=30_000_000, validate=False), compiled(model, validate=False)

    def step(of: Any) -> dict[str, Tensor]:
        model.zero_grad()
        loss(of(graph), targets)[0].backward()
        return gradients(model)

    expected = step(model)
    same(step(tiled), expected)
    assert peak(lambda: step(tiled)) < 36_000_000 < 0.2 * peak(lambda: step(model))
    same(step(kept), expected)  # at most MANY bytes


def test_gradients_that_cannot_be_compiled(always: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken by autograd, and a warning says so, once."""
    model = Model()
    dmodel = compiled(model)
    graph, targets = given(CRYSTAL)
    _, expected = stock(model, graph, targets)

    def failing(self: Any, *args: Any) -> Any:
        raise distcompile.CaptureError("not this one")

    with monkeypatch.context() as patch:
        patch.setattr(distcompile.DistributedModel, "_captured", failing)
        with pytest.warns(UserWarning, match="not this one"):
            loss(dmodel(graph), targets)[0].backward()
    same(gradients(model), expected)
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(dmodel(graph), targets)[0].backward()
    same(gradients(model), expected)
    assert always == [None, None]
