"""One potential for all adversaries, of which each says how an atom's features are updated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from toys import N_SPECIES, Graph, Result, gaussians, random_graph, seeded

F = 6
"""Features of an atom."""


class Toy(nn.Module):
    """Energy, forces and stress of an energy that a subclass defines; weights for species, radii and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_SPECIES, F)
        self.radial = nn.Linear(6, F, bias=False)
        self.mix = nn.Linear(F, F)
        self.readout = nn.Linear(F, 1)
        self.more()
        seeded(self)

    def more(self) -> None:
        """Further weights of a subclass."""

    def forward(self, graph: Graph) -> Result:
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        positions = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
        sender, receiver = graph["edge_index"]
        moved = positions @ deformation
        vectors = moved[sender] + graph["shifts"] @ (graph["cell"] @ deformation) - moved[receiver]
        energy, others = self.energy(graph, vectors, vectors.norm(dim=-1))
        from_positions, from_strain = torch.autograd.grad(energy.sum(), [positions, strain], create_graph=self.training)
        volume = torch.linalg.det(graph["cell"]).abs()
        return {"energy": energy, "forces": -from_positions, "stress": from_strain / volume, **others}

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        """The energy, and further results."""
        h = self.embedding(graph["species"])
        h = self.update(graph, h, self.radial(gaussians(lengths)), vectors, lengths)
        energies = self.readout(torch.tanh(h)).squeeze(-1)
        return energies.sum(), {}

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        """New features of the atoms.

        Args:
            graph: the graph.
            h: features of the atoms. Shape: [n_atoms, F].
            w: radial weights of the edges. Shape: [n_edges, F].
            vectors: of the edges. Shape: [n_edges, 3].
            lengths: of the edges. Shape: [n_edges].
        """
        raise NotImplementedError


def add_to(rows: Tensor, where: Tensor, like: Tensor) -> Tensor:
    """Sum rows where a pointer says, into as many rows as `like` has."""
    return rows.new_zeros(like.shape[0], *rows.shape[1:]).index_add(0, where, rows)


SIZES = (10, 17, 5)
"""Atoms of the graphs: the example, and what its program must serve too."""


def plain(**options: Any) -> list[Graph]:
    """Graphs of `SIZES` atoms."""
    return [random_graph(n, seed=n, **{"cutoff": 2.6, **options}) for n in SIZES]


@dataclasses.dataclass(frozen=True)
class Adversary:
    """A potential with graphs of three sizes; the first one is the example."""

    model: Callable[[], nn.Module]
    graphs: Callable[[], list[Any]] = plain
    spaces: frozenset[str] = frozenset({"atoms", "edges"})
    """The index spaces that are divided among ranks."""
    missing: str = ""
    """Why it cannot be compiled yet."""
    untrainable: str = ""
    """Why it cannot be trained on several ranks yet."""
