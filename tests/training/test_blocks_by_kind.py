"""Matrices of edges, made kind by kind, listed element by element, and brought into the order of the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import structures
import torch
from ase import Atoms
from torch import Tensor, nn
from toys import seeded

import distcompile
from distcompile import DividedRows, LocalWorld, training_step
from training.models import Model, given

EXACT = 1e-9


class Blocks(nn.Module):
    """Elements of a 2 x 3 block for each edge; `kinds` of edges, those of two species in either direction."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.kinds, self.body = kinds, Model()
        self.blocks = nn.ModuleList([nn.Linear(16, 6) for _ in range(kinds)])
        seeded(self)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        h = self.body.species(graph["species"])
        h = self.body.layer(h, graph, (graph["shifts"][:, :1] + 1).expand(-1, 6), 0)
        first, second = graph["edges"]
        messages = torch.tanh(h[first] * (1 + graph["shifts"][:, 1:2]))
        species = (graph["species"] > graph["species"].min()) * (self.kinds > 1)
        kind = species[second].long() - species[first].long()  # 0 between equals, else 1 one way and -1 the other
        lists = [self.elements(self.blocks[0], messages, kind, 0)]
        lists += [self.elements(self.blocks[1], messages, kind, way) for way in (1, -1) if self.kinds > 1]
        return torch.cat(lists)[_order(kind)]

    def elements(self, block: nn.Module, messages: Tensor, kind: Tensor, way: int) -> Tensor:
        """Of all edges of a kind, in one direction: made of messages in both."""
        of_kind = kind.abs() == abs(way)
        these: Any = kind[of_kind] == way if way else slice(None)
        others: Any = ~these if way else slice(None)
        mine = messages[of_kind]
        return block(torch.cat([mine[these], mine[others]], 1)).reshape(-1, 2, 3).ravel()


def _order(kind: Tensor) -> Tensor:
    """The place of each element among those that were listed kind by kind; by NumPy, as packages do it."""
    places = np.argsort(np.argsort(kind.numpy() % 3, kind="stable"), kind="stable")
    return torch.from_numpy((places[:, None] * 6 + np.arange(6)).ravel())


def example(atoms: Atoms) -> tuple[dict[str, Tensor], Tensor]:
    """A graph, and random elements of blocks as targets."""
    graph, _ = given(atoms)
    generator = torch.Generator().manual_seed(3)
    return graph, torch.rand(6 * graph["edges"].shape[1], generator=generator, dtype=torch.float64)


def loss(result: Tensor, targets: Tensor) -> Tensor:
    return ((result - targets) ** 2).mean()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("kinds", [1, 2])
def test_loss_and_gradients(kinds: int, ranks: int) -> None:
    """Edges that are picked by kind, then by direction, are not taken for atoms."""
    net = Blocks(kinds)
    step = training_step(net, loss, *example(structures.crystal((2, 2, 2))), world=LocalWorld(ranks), lowering="eager")
    graph, targets = example(structures.film())
    loss(net(graph), targets).backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    torch.testing.assert_close(step(graph, targets), loss(net(graph), targets).detach(), rtol=EXACT, atol=EXACT)
    for name, gradient in expected.items():
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=EXACT, atol=EXACT)
    if kinds == 1:
        assert "Whole on every rank" not in step.explain()


def test_elements_stay_divided() -> None:
    """All those of one edge are on one rank."""
    net: Any = Blocks(1).eval().requires_grad_(False)
    graph, _ = example(structures.film())
    dmodel = distcompile.compile(
        net, example(structures.crystal((2, 2, 2)))[0], world=LocalWorld(3), lowering="eager", gather=False
    )
    found = dmodel(graph)
    assert isinstance(found, DividedRows)
    numbers = found.numbers.reshape(-1, 6)
    assert torch.equal(numbers, numbers[:, :1] + torch.arange(6)) and not (numbers[:, 0] % 6).any()
    torch.testing.assert_close(found.values, net(graph)[found.numbers], rtol=EXACT, atol=EXACT)
