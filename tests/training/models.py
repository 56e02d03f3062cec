"""A model to train, as users write them: energies and forces of structures, and a matrix for each edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor, nn
from toys import seeded

CUTOFF = 3.6
SPECIES = 40

Graph = dict[str, Tensor]
Targets = dict[str, Tensor]


class Model(nn.Module):
    """Two layers of messages over the edges of any number of structures; an embedding, biases, a normalisation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.species = nn.Embedding(SPECIES, width)
        self.radial = nn.ModuleList([nn.Sequential(nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width))] * 2)
        self.mix = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.energy = nn.Linear(width, 1)
        self.block = nn.Linear(2 * width + 6, 4)
        seeded(self)

    def layer(self, h: Tensor, graph: Graph, radial: Tensor, at: int) -> Tensor:
        first, second = graph["edges"]
        messages = self.radial[at](radial) * self.mix[at](h)[second]
        return self.norm(h + torch.zeros_like(h).index_add(0, first, messages.to(h)))

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        positions = graph["positions"].clone().requires_grad_()
        first, second = graph["edges"]
        vectors = positions[second] - positions[first] + graph["shifts"]
        lengths = vectors.norm(dim=1, keepdim=True)
        centres = torch.linspace(0.5, CUTOFF, 6, dtype=lengths.dtype, device=lengths.device)
        radial = torch.exp(-((lengths - centres) ** 2)) * (1 - (lengths / CUTOFF) ** 2) ** 2
        h = self.species(graph["species"])
        for at in range(2):
            h = self.layer(h, graph, radial, at)
        energies = torch.tanh(self.energy(h)[:, 0])
        energy = torch.zeros_like(graph["sizes"]).index_add(0, graph["batch"], energies.to(positions))
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        blocks = self.block(torch.cat([h[first], h[second], radial], 1)).reshape(-1, 2, 2)
        return {"energy": energy, "forces": -gradient if self.training else -gradient.detach(), "blocks": blocks}


def loss(result: dict[str, Tensor], targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    """Of energies an atom, of forces, of the matrix of every edge."""
    energy = ((result["energy"] - targets["energy"]) ** 2).mean()
    forces = ((result["forces"] - targets["forces"]) ** 2).sum() / len(targets["forces"])
    blocks = (result["blocks"] - targets["blocks"]).abs().mean()
    return energy + 3.0 * forces + blocks, {
        "energy": energy,
        "largest": (result["forces"] - targets["forces"]).abs().max(),
    }


def given(*structures: Atoms, seed: int = 0, order: int | None = None) -> tuple[Graph, Targets]:
    """Structures as one graph object, and random targets. With `order`, edges come in a random order."""
    chance = np.random.default_rng(seed)
    parts, begun = [], 0
    for atoms in structures:
        first, second, images = neighbor_list("ijS", atoms, CUTOFF)
        parts.append((np.stack([first, second]) + begun, images @ atoms.cell.array))
        begun += len(atoms)
    edges = np.concatenate([edges for edges, _ in parts], 1)
    shifts = np.concatenate([shifts for _, shifts in parts])
    blocks = chance.normal(size=(len(shifts), 2, 2))
    if order is not None:
        permuted = np.random.default_rng(order).permutation(len(shifts))
        edges, shifts, blocks = edges[:, permuted], shifts[permuted], blocks[permuted]
    sizes = [len(atoms) for atoms in structures]
    graph: dict[str, Any] = {
        "positions": np.concatenate([atoms.positions for atoms in structures]),
        "species": np.concatenate([atoms.numbers for atoms in structures]),
        "edges": edges, "shifts": shifts, "sizes": np.array(sizes, float), "batch": np.repeat(range(len(sizes)), sizes),
    }  # fmt: skip
    targets = {
        "energy": chance.normal(size=len(sizes)), "forces": chance.normal(size=(sum(sizes), 3)), "blocks": blocks,
    }  # fmt: skip
    return tuple({name: torch.tensor(value) for name, value in of.items()} for of in (graph, targets))  # type: ignore[return-value]
