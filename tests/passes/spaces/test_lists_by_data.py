"""Lists whose length the data decide are spaces like any other: one program, whatever the length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adversaries import Toy, add_to
from torch import Tensor
from toys import Graph, Result, random_graph

import distcompile
from distcompile import LocalWorld

REACH = 7.0
"""Reciprocal vectors up to this length, 1/A."""


def largest(cell: Tensor) -> Tensor:
    """How many multiples of a reciprocal vector are within reach, as a real number."""
    return (REACH * cell.norm(dim=1) / (2 * math.pi)).max()


COUNTS: dict[str, Callable[[Tensor], Any]] = {
    "a whole grid": lambda cell: 6,
    "int(x.ceil())": lambda cell: int(largest(cell).ceil()),
    "int(x.ceil().item())": lambda cell: int(largest(cell).ceil().item()),
    "math.ceil(x.item())": lambda cell: math.ceil(largest(cell).item()),
    "int(float(x)) + 1": lambda cell: int(float(largest(cell))) + 1,
    "tolist": lambda cell: largest(cell)[None].ceil().long().tolist()[0],
}
"""How a model gets the number of multiples."""


class Ewald(Toy):
    """Charges that depend on neighbours, and the energy of their waves, counted in forward."""

    def __init__(self, count: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.count = count

    def forward(self, graph: Graph) -> Result:
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        x = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=x.dtype) + (strain + strain.T) / 2
        cell, moved = graph["cell"] @ deformation, x @ deformation
        sender, receiver = graph["edge_index"]
        lengths = (moved[sender] + graph["shifts"] @ cell - moved[receiver]).norm(dim=-1)
        charges = self.embedding(graph["species"])[:, 0] + add_to(torch.exp(-lengths), receiver, x)
        energy = self.waves(cell, moved, charges) + (charges**2).sum()
        forces, stress = torch.autograd.grad(energy, [x, strain])
        return {"energy": energy, "forces": -forces, "stress": stress}

    def waves(self, cell: Tensor, x: Tensor, charges: Tensor) -> Tensor:
        n = self.count(cell)
        line = torch.arange(-n, n + 1, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
        vectors = grid @ (2 * math.pi * torch.linalg.inv(cell).T)
        squares = (vectors * vectors).sum(1)
        chosen = (squares > 1e-6) & (squares < REACH**2)
        vectors, squares = vectors[chosen], squares[chosen]
        phase = x @ vectors.T
        waves = (charges[:, None] * phase.cos()).sum(0) ** 2 + (charges[:, None] * phase.sin()).sum(0) ** 2
        return (waves * torch.exp(-squares / 8) / squares).sum() / torch.linalg.det(cell).abs()


@pytest.mark.parametrize("name", COUNTS)
def test_reciprocal_vectors_counted_in_forward(name: str) -> None:
    """Eight cells, hundreds to thousands of vectors: one program on 2 ranks, exact."""
    model = Ewald(COUNTS[name]).eval()
    compiled = distcompile.compile(model, random_graph(10), world=LocalWorld(2))
    for n, seed in ((10, 0), (17, 1), (24, 3), (40, 4), (12, 5), (31, 6), (60, 7), (90, 8)):
        graph = random_graph(n, seed)
        for key, value in model(graph).items():
            scale = max(1.0, float(value.abs().max()))
            torch.testing.assert_close(compiled(graph)[key], value.detach(), rtol=0, atol=1e-11 * scale)
    assert compiled.captures == 1


def test_memory_of_vectors_by_atoms_is_counted() -> None:
    """Rows of waves are as wide as there are vectors, so that blocks are of fewer atoms."""
    compiled = distcompile.compile(
        Ewald(COUNTS["tolist"]).eval(), random_graph(10), world=LocalWorld(1), validate=False
    )
    widest = max(region.spec.row_bytes for region in compiled.program.tiled.children())  # type: ignore[union-attr]
    assert widest > 8 * 100
