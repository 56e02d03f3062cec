"""Gradients, taken outside, of largest values whose rows lie on several ranks; many are as large as each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from adversaries import N_SPECIES, F, SegmentSoftmax, Toy, few_with_edges
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor, fx, nn
from toys import Graph, Result, random_graph

import distcompile
from distcompile import LocalWorld
from distcompile.rules.messages import is_message


def level(x: Tensor) -> Tensor:
    """The sign of each value, with the gradient of the value: many are as large as each other."""
    return x - x.detach() + x.detach().sign()


def each(rows: Tensor) -> Tensor:
    """Row numbers for a scatter by element."""
    return rows[:, None].expand(-1, F)


WAYS: dict[str, Callable[[Toy, Tensor, Tensor, Graph], Tensor]] = {
    "at senders": lambda m, h, w, g: torch.zeros_like(h).scatter_reduce(0, each(g["edge_index"][0]), level(w), "amax"),
    "smallest at senders": lambda m, h, w, g: level(h).scatter_reduce(0, each(g["edge_index"][0]), level(w), "amin"),
    "with their own": lambda m, h, w, g: level(h).scatter_reduce(0, each(g["edge_index"][0]), level(w), "amax"),
    "without their own": lambda m, h, w, g: level(h).scatter_reduce(
        0, each(g["edge_index"][0]), level(w), "amax", include_self=False
    ),
    "without ones": lambda m, h, w, g: torch.ones_like(h).scatter_reduce(
        0, each(g["edge_index"][0]), level(w), "amax", include_self=False
    ),
    "without ones, at receivers": lambda m, h, w, g: torch.ones_like(h).scatter_reduce(
        0, each(g["edge_index"][1]), level(w), "amax", include_self=False
    ),
    "without their own, at receivers": lambda m, h, w, g: level(h).scatter_reduce(
        0, each(g["edge_index"][1]), level(w), "amax", include_self=False
    ),
    "at both ends": lambda m, h, w, g: (
        level(h)
        .scatter_reduce(0, each(g["edge_index"][0]), level(w), "amax")
        .scatter_reduce(0, each(g["edge_index"][1]), level(w * h[g["edge_index"][0]]), "amax")
    ),
    "of each species": lambda m, h, w, g: level(m.mix.weight[:N_SPECIES]).scatter_reduce(
        0, each(g["species"]), level(h), "amax"
    )[g["species"]],
    "of each species, without its own": lambda m, h, w, g: level(m.mix.weight[:N_SPECIES]).scatter_reduce(
        0, each(g["species"]), level(h), "amin", include_self=False
    )[g["species"]],
    "of each species, and of all": lambda m, h, w, g: (
        level(m.mix.weight[:N_SPECIES]).scatter_reduce(0, each(g["species"]), level(h), "amax")[g["species"]]
        + level(h).amax(0)
    ),
    "of all": lambda m, h, w, g: level(w).max() * level(w).min() + level(h).amax(0) * level(w).amin(),
}
"""Largest values of features of atoms and edges."""


class Largest(Toy):
    """Messages, and largest values added to them."""

    def __init__(self, way: Callable[[Toy, Tensor, Tensor, Graph], Tensor]) -> None:
        super().__init__()
        self.way = way

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = torch.tanh(self.mix(h.index_add(0, receiver, w * h[sender])))
        return h + h * self.way(self, h, w, graph)


def gradients(model: Any, graph: Graph, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Of a loss on energy and one on forces, by positions and parameters."""
    found: list[Tensor] = []
    for key in ("energy", "forces"):
        positions = graph["positions"].clone().requires_grad_()
        value = model({**graph, "positions": positions})[key]
        weights = torch.linspace(-0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        loss = (weights * value + 0.1 * value**2).sum()
        given = torch.autograd.grad(loss, [positions, *parameters], allow_unused=True)
        found += [torch.zeros_like(p) if g is None else g for g, p in zip(given, [positions, *parameters], strict=True)]
    return found


@pytest.mark.parametrize("name", WAYS)
def test_shares_are_those_of_the_stock_model(name: str) -> None:
    """To 1e-11 on 1, 2 and 3 ranks, of energy and forces; on few atoms too, where ranks have no edge."""
    model = Largest(WAYS[name]).train()
    parameters = list(model.parameters())
    program = distcompile.compile(model, random_graph(12), world=LocalWorld(1), validate=False)
    for graph in (random_graph(17, 1), few_with_edges()[1]):
        expected = gradients(model, graph, parameters)
        assert sum(float(g.abs().max()) > 1e-3 for g in expected) > 4
        for ranks in (1, 2, 3):
            for found, stock in zip(gradients(program.on(LocalWorld(ranks)), graph, parameters), expected, strict=True):
                torch.testing.assert_close(found, stock, rtol=1e-11, atol=1e-11)
    assert program.captures == 1


class LongestOfEach(nn.Module):
    """The longest edge that starts at each atom, times a weight of its species."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))

    def forward(self, graph: Graph) -> Result:
        sender, receiver = graph["edge_index"]
        x = graph["positions"]
        lengths = (x[sender] + graph["shifts"] @ graph["cell"] - x[receiver]).norm(dim=1)
        longest = x.new_zeros(len(x)).scatter_reduce(0, sender, lengths, "amax")
        return {"energy": (self.weight[graph["species"]] * longest).sum()}


def lattice() -> Graph:
    """27 atoms on a cubic lattice, each with six neighbours that are as far as each other to the last bit."""
    positions = 2.0 * torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)
    cell = 6.0 * torch.eye(3, dtype=torch.float64)
    atoms = Atoms("H27", positions=positions.numpy(), cell=cell.numpy(), pbc=True)
    receiver, sender, shifts = neighbor_list("ijS", atoms, 2.5)
    edges, images = torch.tensor(np.stack([sender, receiver])), torch.tensor(shifts, dtype=torch.float64)
    species = torch.tensor(np.random.default_rng(0).integers(0, N_SPECIES, 27))
    return {"positions": positions, "species": species, "edge_index": edges, "shifts": images, "cell": cell}


def forces_of(model: LongestOfEach, graph: Graph, shares: Tensor) -> Tensor:
    """The gradient by positions, if each edge has a share of that of its sender's longest."""
    sender, receiver = graph["edge_index"]
    x = graph["positions"]
    unit = (x[sender] + graph["shifts"] @ graph["cell"] - x[receiver]) / 2.0
    pull = (model.weight.detach()[graph["species"]][sender] * shares)[:, None] * unit
    return torch.zeros_like(x).index_add(0, sender, pull).index_add(0, receiver, -pull)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_edges_of_one_length_share_evenly_whatever_rank_they_are_on(ranks: int) -> None:
    """Each of six has a sixth of the gradient; an even share for each rank would be wrong by 0.1 and more."""
    model, graph = LongestOfEach(), lattice()
    sender, receiver = graph["edge_index"]
    assert sender.bincount().tolist() == [6] * 27
    program = distcompile.compile(model, random_graph(12), world=LocalWorld(ranks), validate=False)
    found = []
    for call in (model, program):
        positions = graph["positions"].clone().requires_grad_()
        found.append(torch.autograd.grad(call({**graph, "positions": positions})["energy"], positions)[0])
    torch.testing.assert_close(found[0], forces_of(model, graph, torch.full((162,), 1 / 6, dtype=torch.float64)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)

    executor = program.executor_for(graph)
    owner = executor.layout(executor.prepare(program.flatten((graph,))[0])).division.ranks["atoms"][receiver]
    ties = torch.zeros(27, ranks, dtype=torch.float64).index_put((sender, owner), torch.ones(162).double(), True)
    of_each_rank = 1 / (ties > 0).sum(1)[sender] / ties[sender, owner]
    uneven = float((forces_of(model, graph, of_each_rank) - found[0]).abs().max())
    assert uneven > 0.1 if ranks > 1 else uneven < 1e-12


def messages(module: fx.GraphModule) -> int:
    """Exchanges and reductions of a graph."""
    return sum(is_message(n) for n in module.graph.nodes)


def test_only_the_graph_to_differentiate_is_another() -> None:
    """A rank that evaluates sends the largest values alone; where no gradient goes through them, there is one graph."""
    fixed, followed = (
        distcompile.compile(SegmentSoftmax("sender", detach=detach), random_graph(12), validate=False).program
        for detach in (True, False)
    )
    assert fixed.differentiated is fixed.graph
    assert messages(followed.tiled) == messages(followed.graph)
    assert messages(followed.differentiated) == messages(followed.graph) + 3, "values back, their sum and number"
