"""Training steps of stock models: loss and gradients on two ranks are those of ``backward``, forces in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structures
import torch
import zoo
from torch import Tensor

from distcompile import LocalWorld, training_step
from distcompile.ir.tree import flatten

ARGUMENTS = {"MACE": {"training": True}}
"""Models that are told in their call that they are trained."""

MODELS: dict[str, tuple[str, Callable[[], zoo.Case]]] = {
    "MACE": ("MACE (MP-0 medium)", zoo.mace),
    "CHGNet 0.3.0": ("CHGNet 0.3.0", zoo.chgnet),
    **{
        name: (name, zoo.OTHERS[name][1]) for name in ("TensorNet", "M3GNet", "SevenNet-0", "NequIP", "Allegro", "eSEN")
    },
    "eSEN with blocks": ("eSEN", zoo.esen_blocks),
}
"""The model of the same package in `zoo.MODELS`, and how to make this one."""


def loss(result: Any, targets: dict[str, Tensor]) -> Tensor:
    """Mean squares of what is off."""
    found = (
        result if "edges" in targets else dict(zip(("energy", "forces"), zoo.energy_and_forces(result), strict=True))
    )
    return sum(((found[name] - target) ** 2).mean() for name, target in targets.items())  # type: ignore[return-value]


def given(case: zoo.Case, atoms: Any, blocks: bool) -> tuple[Any, dict[str, Tensor]]:
    """A graph object and targets."""
    graph = case.graph(atoms)
    chance = torch.Generator().manual_seed(1)
    shapes = {"energy": (), "forces": (len(atoms), 3)}
    if blocks:
        shapes = {"atoms": (len(atoms), 9, 9), "edges": (graph.edge_index.shape[1], 9, 9)}
    dtype = torch.float64 if case.double else torch.float32
    return graph, {
        n: torch.randn(shape, generator=chance, dtype=torch.float64).to(dtype) for n, shape in shapes.items()
    }


def copied(graph: Any) -> tuple[Any, ...]:
    """The positional arguments of a model, which may write to them."""
    leaves, tree = flatten(graph if isinstance(graph, tuple) else (graph,))
    return tree.unflatten([leaf.tensor.clone() for leaf in leaves])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(name: str) -> None:
    """For a film, with a program that was made for a crystal and serves both."""
    of_package, make = MODELS[name]
    if not zoo.is_installed(of_package):
        pytest.skip(f"{zoo.MODELS[of_package][0]} is not installed in this environment")
    case = make()
    kwargs = {**case.kwargs, **ARGUMENTS.get(name, {})}
    model = case.model
    before = model.training
    model.train()
    try:
        blocks = "blocks" in name
        graph, targets = given(case, structures.crystal((2, 2, 1)), blocks)
        step = training_step(
            model,
            loss,
            copied(graph),
            targets,
            model_kwargs=kwargs,
            world=LocalWorld(2),
            lowering="eager",
            validate=False,
        )
        graph, targets = given(case, structures.film(), blocks)
        expected = loss(model(*copied(graph), **kwargs), targets)
        expected.backward()
        stock = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        found = step(copied(graph), targets)
        largest = max(float(g.abs().max()) for g in stock.values())
        exact = 1e-9 if case.double else 1e-5
        torch.testing.assert_close(found, expected.detach(), rtol=exact, atol=0)
        assert {n for n, p in model.named_parameters() if p.grad is not None} == stock.keys()
        for n, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(
                    p.grad, stock[n], rtol=0, atol=exact * largest, msg=lambda m, n=n: f"{n}: {m}"
                )
    finally:
        model.zero_grad()
        model.train(before)
