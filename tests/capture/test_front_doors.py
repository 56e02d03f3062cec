"""Torch has other ways in: scripted, loaded and compiled modules, TorchScript classes, transforms of ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Gnn, Graph, random_graph

import distcompile
from distcompile import LocalWorld, UnsupportedOp
from distcompile.testing import check_model

EXAMPLE, *OTHERS = (random_graph(n, seed) for n, seed in ((10, 0), (17, 1), (6, 3)))


class Scriptable(nn.Module):
    """Energy and forces in what TorchScript understands."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 4).double(), nn.Linear(4, 1).double()

    def forward(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        x = graph["positions"].detach().clone().requires_grad_(True)
        edges = graph["edge_index"]
        vectors = x[edges[0]] + graph["shifts"] @ graph["cell"] - x[edges[1]]
        h = torch.tanh(self.first((vectors * vectors).sum(1).sqrt()[:, None]))
        n = torch.zeros([x.shape[0], 4], dtype=x.dtype).index_add(0, edges[1], h)
        energy = self.last(torch.tanh(n)).sum()
        forces = torch.autograd.grad([energy], [x])[0]
        assert forces is not None
        return {"energy": energy, "forces": -forces}


class Twice(nn.Module):
    """Holds a module."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, graph: Graph) -> Any:
        return {name: 2 * value for name, value in self.inner(graph).items()}


def loaded(folder: Path) -> Any:
    torch.jit.script(Scriptable().eval()).save(folder / "model.pt")
    return torch.jit.load(folder / "model.pt")


DOORS: dict[str, Callable[[Path], Any]] = {
    "scripted": lambda folder: torch.jit.script(Scriptable().eval()),
    "loaded": loaded,
    "compiled": lambda folder: torch.compile(Scriptable().eval(), backend="eager"),
    "holds a scripted one": lambda folder: Twice(torch.jit.script(Scriptable().eval())),
    "holds a loaded one": lambda folder: Twice(loaded(folder)),
    "holds a compiled one": lambda folder: Twice(torch.compile(Scriptable().eval(), backend="eager")),
}


@pytest.mark.parametrize("name", DOORS)
def test_modules_in_other_forms(name: str, tmp_path: Path) -> None:
    """TorchScript adds up in an order of its own."""
    report = check_model(DOORS[name](tmp_path), EXAMPLE, OTHERS, ranks=(1, 2, 3), relative=1e-11)
    assert report.captures == 1


@torch.jit.script
class Structure:
    """A graph object of TorchScript."""

    def __init__(self, positions: Tensor, edge_index: Tensor) -> None:
        self.positions = positions
        self.edge_index = edge_index


@torch.jit.script
def structure(positions: Tensor, edge_index: Tensor) -> Structure:
    return Structure(positions, edge_index)


class OfStructure(nn.Module):
    def forward(self, graph: Structure) -> Tensor:
        sender, receiver = graph.edge_index[0], graph.edge_index[1]
        return torch.exp(-(graph.positions[sender] - graph.positions[receiver]).pow(2).sum(1).sqrt()).sum()


@pytest.mark.parametrize("make", [Structure, structure])
@pytest.mark.parametrize("scripted", [False, True])
def test_graphs_that_are_instances_of_scripted_classes(make: Any, scripted: bool) -> None:
    model = torch.jit.script(OfStructure()) if scripted else OfStructure()
    first, *others = [make(g["positions"], g["edge_index"]) for g in (EXAMPLE, *OTHERS)]
    assert check_model(model, first, others, ranks=(1, 2, 3)).captures == 1


def energy(x: Tensor, graph: Graph) -> Tensor:
    return (energies(x, graph) ** 2).sum()


def energies(x: Tensor, graph: Graph) -> Tensor:
    sender, receiver = graph["edge_index"]
    lengths = (x[sender] + graph["shifts"] @ graph["cell"] - x[receiver]).norm(dim=-1)
    weights = torch.exp(-lengths) * (1 + graph["species"][sender])
    return torch.zeros(x.shape[0], dtype=x.dtype).index_add(0, receiver, weights)


def of_cell(graph: Graph) -> Callable[[Tensor], Tensor]:
    return lambda cell: energy(graph["positions"], {**graph, "cell": cell})


def by_batch(graph: Graph) -> Tensor:
    """Gradients of three sums, asked for at once."""
    x = graph["positions"].clone().requires_grad_()
    e = energies(x, graph)
    sums = torch.stack([e.sum(), (e**2).sum(), e.sin().sum()])
    return torch.autograd.grad(sums, x, torch.eye(3, dtype=x.dtype), is_grads_batched=True)[0]


def along(graph: Graph) -> Tensor:
    return graph["positions"].sin()


transforms = torch.func
INSIDE: dict[str, Callable[[Graph], Any]] = {
    "grad": lambda g: transforms.grad(energy)(g["positions"], g),
    "grad and value": lambda g: transforms.grad_and_value(energy)(g["positions"], g),
    "vjp": lambda g: transforms.vjp(lambda x: energies(x, g), g["positions"])[1](g["positions"][:, 0])[0],
    "jvp": lambda g: transforms.jvp(lambda x: energies(x, g), (g["positions"],), (along(g),)),
    "jacrev": lambda g: transforms.jacrev(energy)(g["positions"], g),
    "jacrev by cell": lambda g: transforms.jacrev(of_cell(g))(g["cell"]),
    "jacfwd by cell": lambda g: transforms.jacfwd(of_cell(g))(g["cell"]),
    "product with the Hessian": lambda g: transforms.jvp(
        lambda x: transforms.grad(energy)(x, g), (g["positions"],), (along(g),)
    )[1],
    "vmap over cells": lambda g: transforms.vmap(of_cell(g))(torch.stack([g["cell"], 1.01 * g["cell"]])),
    "gradients in a batch": by_batch,
}


class Inside(nn.Module):
    def __init__(self, what: Callable[[Graph], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, graph: Graph) -> Any:
        return self.what(graph)


@pytest.mark.parametrize("name", INSIDE)
def test_transforms_within_a_model(name: str) -> None:
    """Divided, by one program for all sizes."""
    report = check_model(Inside(INSIDE[name]), EXAMPLE, OTHERS, ranks=(1, 2, 3))
    assert report.captures == 1


@pytest.mark.filterwarnings("ignore:The stock model runs whole")
@pytest.mark.parametrize("name", ["hessian", "jacrev"])
def test_transforms_over_rows_within_a_model_run_whole(name: str) -> None:
    """A batch of a number of rows that varies, each made of all rows."""
    whole = {
        "hessian": lambda g: transforms.hessian(energy)(g["positions"], g),
        "jacrev": lambda g: transforms.jacrev(energies)(g["positions"], g),
    }
    compiled = distcompile.compile(Inside(whole[name]), EXAMPLE, world=LocalWorld(2))
    assert f"{Path(__file__).name}:" in compiled.explain()
    assert "distcompile.hessian" in compiled.explain()
    for graph in OTHERS:
        torch.testing.assert_close(compiled(graph), whole[name](graph), rtol=1e-12, atol=0)


class Energy(nn.Module):
    """An energy that users differentiate themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, graph: Graph) -> Tensor:
        return self.scale * energy(graph["positions"], graph)


def of(model: Any, graph: Graph) -> Callable[[Tensor], Tensor]:
    return lambda x: model({**graph, "positions": x})


def of_the_cell(model: Any, graph: Graph) -> Callable[[Tensor], Tensor]:
    return lambda cell: model({**graph, "cell": cell})


OUTSIDE: dict[str, Callable[[Any, Graph], Any]] = {
    "grad": lambda m, g: transforms.grad(of(m, g))(g["positions"]),
    "vjp": lambda m, g: transforms.vjp(of(m, g), g["positions"])[1](torch.tensor(2.0, dtype=torch.float64))[0],
    "jvp": lambda m, g: transforms.jvp(of(m, g), (g["positions"],), (along(g),)),
    "jacrev": lambda m, g: transforms.jacrev(of(m, g))(g["positions"]),
    "jacfwd": lambda m, g: transforms.jacfwd(of_the_cell(m, g))(g["cell"]),
    "hessian": lambda m, g: transforms.hessian(of_the_cell(m, g))(g["cell"]),
    "forward over reverse": lambda m, g: transforms.jvp(transforms.grad(of(m, g)), (g["positions"],), (along(g),))[1],
    "reverse over reverse": lambda m, g: transforms.vjp(transforms.grad(of(m, g)), g["positions"])[1](along(g))[0],
    "autograd's jacobian": lambda m, g: torch.autograd.functional.jacobian(of(m, g), g["positions"]),
    "autograd's hvp": lambda m, g: torch.autograd.functional.hvp(of(m, g), g["positions"], along(g))[1],
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", OUTSIDE)
def test_transforms_of_a_compiled_model(name: str, ranks: int) -> None:
    compiled = distcompile.compile(Energy(), EXAMPLE, world=LocalWorld(ranks))
    found, expected = (OUTSIDE[name](m, OTHERS[1]) for m in (compiled, Energy()))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_weights_under_a_transform_are_refused_rather_than_lost() -> None:
    """What is returned depends on weights, which a step of a transform does not tell; backward says so."""
    compiled = distcompile.compile(Energy(), EXAMPLE, world=LocalWorld(2))
    forces = transforms.grad(of(compiled, OTHERS[1]))(OTHERS[1]["positions"])
    with pytest.raises(UnsupportedOp, match="Weights are not differentiated"):
        forces.sum().backward()


@pytest.mark.parametrize("counted", [False, True], ids=["by its tensors", "by a number in it"])
def test_len_in_code_that_does_not_name_torch(counted: bool) -> None:
    """As of a script that defines no more than a loss: its ``len(x)`` is no number of the example either."""
    space: dict[str, Any] = {}
    exec("def mean(x, y):\n    return ((x - y) ** 2).sum() / len(x)", space)
    model = Gnn()

    def mean(graph: Graph) -> Any:
        energies = model(graph)["energies"]
        if counted:  # a number of rows that depends on values
            energies = energies.new_zeros(graph["n"].item()).index_add(
                0, graph["edge_index"][1], energies[graph["edge_index"][0]]
            )
        return space["mean"](energies, graph["positions"][:, 0])

    example, *others = ({**graph, "n": torch.tensor(len(graph["species"]))} for graph in (EXAMPLE, *OTHERS))
    compiled = distcompile.compile(mean, example, world=LocalWorld(2))
    for other in others:
        torch.testing.assert_close(compiled(other), mean(other))
