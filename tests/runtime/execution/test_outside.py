"""Gradients that a caller takes of results, by what it gave: counted once, whatever the model does with its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adversaries import Toy, add_to
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from toys import N_SPECIES, Graph, random_graph

import distcompile
from distcompile import LocalWorld, ValidationError

BESIDE: dict[str, Callable[[Graph], Any]] = {
    "positions": lambda g: g["positions"],
    "positions times one": lambda g: g["positions"] * 1.0,
    "a view of positions": lambda g: g["positions"].view(-1, 3),
    "positions transposed": lambda g: g["positions"].T,
    "a copy": lambda g: g["positions"].clone(),
    "positions twice": lambda g: (g["positions"], g["positions"]),
    "the cell": lambda g: g["cell"],
    "the cell transposed": lambda g: g["cell"].T.contiguous(),
    "shifts": lambda g: g["shifts"],
    "the whole graph": lambda g: dict(g),
    "positions that an index hangs on": lambda g: (x := g["positions"] * 2.0) * x[:, 0].argsort()[:1].sign(),
}
"""What a model returns beside its energy."""


class Beside(nn.Module):
    """A sum over edges, and what is made of the graph itself."""

    def __init__(self, beside: Callable[[Graph], Any]) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, graph: Graph) -> Any:
        i, j = graph["edge_index"]
        x = graph["positions"]
        energy = torch.exp(-(x[i] + graph["shifts"] @ graph["cell"] - x[j]).norm(dim=1)).sum()
        return {"beside": self.beside(graph), "energy": energy}


def gradients(model: Any, graph: Graph) -> list[Tensor]:
    """Of all real results, weighted differently, by positions, cell and shifts."""
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in graph.items()}
    results = [r for r in pytree.tree_leaves(model(given)) if r.is_floating_point()]
    loss = sum((r.reshape(-1) * torch.arange(1, r.numel() + 1)).sum() for r in results)
    return list(torch.autograd.grad(loss, [given[k] for k in ("positions", "cell", "shifts")]))  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", BESIDE)
def test_a_result_that_is_an_input_has_its_gradient_once(name: str, ranks: int) -> None:
    model, graph = Beside(BESIDE[name]), random_graph(17, 1)
    compiled = distcompile.compile(model, random_graph(10), world=LocalWorld(ranks))
    for found, expected in zip(gradients(compiled, graph), gradients(model, graph), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


class Forgetful(torch.autograd.Function):
    """The identity, whose gradient is another one at every call."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Forgetful.calls += 1
        return gradient * Forgetful.calls


class Scaled(torch.autograd.Function):
    """A product with a weight, as a package writes it that has kernels for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0)


scaled = Scaled.apply


class OfOwnFunction(nn.Module):
    """An energy through it; torch computes such a function with gradients switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
        self.weight = nn.Parameter(torch.tensor([1.3], dtype=torch.float64))

    def forward(self, graph: Graph) -> Tensor:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        near = torch.exp(-vectors.norm(dim=1)[:, None] * self.decay)
        density = torch.zeros(len(graph["positions"]), 1, dtype=near.dtype)
        return (density.index_add(0, receiver, scaled(near, self.weight)) ** 2).sum()


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_function_with_a_gradient_of_its_own_carries_gradients(ranks: int) -> None:
    """By positions, and by weights on both sides of it."""
    model = OfOwnFunction()
    compiled = distcompile.compile(model, random_graph(12), world=LocalWorld(ranks))
    graph = random_graph(20, 1)
    graph["positions"].requires_grad_()
    by = (graph["positions"], model.decay, model.weight)
    expected = torch.autograd.grad(model(graph), by)
    for found, gradient in zip(torch.autograd.grad(compiled(graph), by), expected, strict=True):
        assert float(gradient.abs().max()) > 0.1
        torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-12)


def test_compile_compares_gradients_too() -> None:
    """Results agree, and what a caller would get who differentiates them does not."""

    class Wrong(Beside):
        def forward(self, graph: Graph) -> Any:
            return {"energy": Forgetful.apply(super().forward(graph)["energy"])}

    with pytest.raises(ValidationError, match=r"gradient by graph\['(cell|positions|shifts)'\] differs"):
        distcompile.compile(Wrong(BESIDE["the cell"]), random_graph(10), world=LocalWorld(2))


def test_a_graph_that_carries_requires_grad() -> None:
    """As some data builders make it: the smaller graph of the check carries it as well, so that stock runs."""

    class NeedsIt(nn.Module):
        def forward(self, graph: Graph) -> Any:
            i, j = graph["edge_index"]
            energy = torch.exp(-(graph["positions"][i] - graph["positions"][j]).norm(dim=1)).sum()
            (gradient,) = torch.autograd.grad(energy, graph["positions"])
            return {"energy": energy.detach(), "forces": -gradient}

    def carrying(n: int) -> Graph:
        graph = random_graph(n, n)
        return {**graph, "positions": graph["positions"].requires_grad_()}

    compiled = distcompile.compile(NeedsIt(), carrying(12), world=LocalWorld(2))
    for n in (20, 2, 12):
        found, expected = compiled(carrying(n)), NeedsIt()(carrying(n))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-12)


def test_second_derivatives_of_determinants_of_cubes() -> None:
    """torch follows the gradient of a determinant by singular values, which has none itself where two are equal."""

    class Determinant(Toy):
        def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
            unit = torch.eye(3, dtype=h.dtype)
            outer = vectors[:, :, None] * vectors[:, None]
            return h + add_to(torch.linalg.det(outer + unit)[:, None] * w, graph["edge_index"][1], h)

    model = Determinant().train()
    compiled = distcompile.compile(model, random_graph(10), world=LocalWorld(2))

    def second(m: Any) -> Tensor:
        graph = random_graph(9, 2)
        x = graph["positions"].requires_grad_()
        return torch.autograd.grad((m(graph)["forces"] ** 2).sum(), x)[0]

    assert bool(second(model).isfinite().all())
    torch.testing.assert_close(second(compiled), second(model), rtol=1e-9, atol=1e-9)


class DetachesWhatRequires(nn.Module):
    """Detaches positions that require gradients, and only these, as a model does that differentiates otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, N_SPECIES, dtype=torch.float64))

    def forward(self, graph: Graph) -> Tensor:
        positions = graph["positions"]
        if positions.requires_grad:
            positions = positions.detach()
        sender, receiver = graph["edge_index"]
        lengths = (positions[sender] - positions[receiver]).norm(dim=1)
        return (self.weight[graph["species"]][sender] * torch.exp(-lengths)).sum()


def test_a_model_that_asks_whether_its_inputs_require_gradients() -> None:
    """It is compiled for inputs that do not, with the gradients that there are: of weights those of stock."""
    model = DetachesWhatRequires()
    compiled = distcompile.compile(model, random_graph(20), world=LocalWorld(2))
    graph = random_graph(31, 2)
    found, expected = (torch.autograd.grad(f(graph), model.weight)[0] for f in (compiled, model))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
