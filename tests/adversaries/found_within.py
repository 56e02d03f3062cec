"""Edges, pairs and triples that the model finds itself, by torch, by NumPy or by a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from toys import CUTOFF, N_SPECIES, Graph, Result, envelope, gaussians, random_graph, seeded

from .sums import ToReceivers
from .toy import Adversary, F, Toy, add_to, plain


class LineGraphs(Toy):
    """Edges -> pairs of edges -> pairs of those: each reads rows of the space before it and sums back to it."""

    def more(self) -> None:
        self.bend, self.twist = nn.Linear(F, F), nn.Linear(F, F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        one, two = graph["angles"]
        left, right = graph["dihedrals"]
        e = w * h[sender]
        a = e[one] * e[two] * (vectors[one] * vectors[two]).sum(-1, keepdim=True)
        d = torch.tanh(self.twist(a[left] - a[right]))
        a = torch.tanh(self.bend(a + add_to(d, right, a)))
        e = e + add_to(a, two, e) * envelope(lengths)[:, None]
        return h + add_to(e, receiver, h)


class AllWithAll(Toy):
    """Pairs of edges are found inside of forward, by comparing every edge with every other."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        number = torch.arange(len(receiver))
        meet = (receiver[:, None] == receiver) & (number[:, None] != number)
        one, two = torch.nonzero(meet, as_tuple=True)
        bent = w[one] * w[two] * (vectors[one] * vectors[two]).sum(-1, keepdim=True)
        return h + add_to(w * h[sender] + 0.1 * add_to(bent, two, w), receiver, h)


class PairsAndTriplesWithin(nn.Module):
    """Pairs of atoms, and pairs of these at an atom, are found inside of forward, as indices of triangles of tables."""

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.number = number
        self.embedding = nn.Embedding(N_SPECIES, 6)
        self.readout = nn.Linear(6, 1)
        seeded(self)

    def forward(self, positions: Tensor, species: Tensor) -> Result:
        positions = positions.clone().requires_grad_()
        n = len(positions)
        one, two = torch.triu_indices(n, n, 1)
        near = ((positions[one] - positions[two]).detach().norm(dim=1) < CUTOFF).nonzero().flatten()
        one, two = one[near], two[near]
        h = self.embedding(species)
        vectors = positions[one] - positions[two]
        messages = gaussians(vectors.norm(dim=1)) * h[one] * h[two]
        at_one, at_two = add_to(messages, one, h), add_to(messages, two, h)
        # Both ends of a pair, sorted by atom; each atom has as many pairs of these as a triangle has entries.
        atoms, ends = torch.cat([one, two]).sort()
        counts = torch.zeros(n, dtype=torch.int64).index_add(0, atoms, torch.ones_like(atoms))
        most = self.number(counts.max())
        corners = torch.tril_indices(most, most, -1)
        sizes = counts * (counts - 1) // 2
        centre = torch.repeat_interleave(torch.arange(n), sizes)
        used = (torch.arange(corners.shape[1]) < sizes[:, None]).flatten()
        start = (counts.cumsum(0) - counts)[centre]
        first, last = ends[corners.repeat(1, n)[:, used] + start]
        outward = torch.cat([vectors, -vectors])
        bent = (outward[first] * outward[last]).sum(1) * h[centre, 0]
        energies = self.readout(torch.tanh(at_one * at_two))
        energy = energies.sum() + 0.1 * bent.sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=self.training)
        return {"energy": energy, "forces": -gradient, "energies": energies, "bent": bent}


@torch.no_grad()
def images_within(positions: Tensor, cell: Tensor) -> tuple[Tensor, None, Tensor]:
    """All pairs of atoms and images that are near, and the images: how many are looked at hangs on the cell."""
    faces = torch.linalg.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]).norm(dim=1)
    reach = (CUTOFF * faces / torch.linalg.det(cell).abs()).ceil()
    images = torch.cartesian_prod(*[torch.arange(-n.item(), n.item() + 1, dtype=cell.dtype) for n in reach])
    lengths = (positions[:, None, None] + images @ cell - positions[:, None]).norm(dim=-1)
    sender, receiver, image = ((lengths < CUTOFF) & (lengths > 0)).nonzero(as_tuple=True)
    return torch.stack([sender, receiver]), None, images[image]


class PeriodicSearchWithin(ToReceivers):
    """Neighbours are looked for inside of forward, in a way that tracing cannot follow."""

    def forward(self, graph: Graph) -> Result:
        edges, _, shifts = images_within(graph["positions"], graph["cell"])
        return super().forward({**graph, "edge_index": edges, "shifts": shifts})


def pairs_of_edges(receiver: Tensor, n_edges: int) -> tuple[Tensor, int]:
    """The pairs of edges that end at one atom, found by NumPy, and how many there are."""
    ends = receiver.numpy()
    found = [(i, j) for i in range(n_edges) for j in np.flatnonzero(ends == ends[i]) if i != j]
    return torch.tensor(np.array(found, dtype=np.int64).reshape(-1, 2).T), len(found)


def pairs_atom_by_atom(receiver: Tensor, n_atoms: int) -> tuple[Tensor, int]:
    """The same, found by torch in a loop over atoms."""
    found = []
    for atom in range(n_atoms):
        edges = (receiver == atom).nonzero()[:, 0]
        pairs = torch.cartesian_prod(edges, edges)
        found.append(pairs[pairs[:, 0] != pairs[:, 1]])
    triplets = torch.cat(found).T
    return triplets, triplets.shape[1]


class TripletsWithin(Toy):
    """Triplets are built inside of forward, by NumPy or by a loop."""

    def __init__(self, by_loop: bool) -> None:
        super().__init__()
        self.by_loop = by_loop

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        if self.by_loop:
            triplets, count = pairs_atom_by_atom(receiver, h.shape[0])
        else:
            triplets, count = pairs_of_edges(receiver, w.shape[0])
        one, two = triplets
        cosine = (vectors[one] * vectors[two]).sum(-1) / (lengths[one] * lengths[two])
        bent = (w[one] * w[two]) * (cosine[:, None] + 0.3) ** 2
        e = w * h[sender] + add_to(bent, two, w)
        return h + add_to(e, receiver, h) / count**0.5


def neighbours(species: Tensor, receiver: Tensor) -> Tensor:
    """How many edges end at each atom, by NumPy."""
    return torch.tensor(np.bincount(receiver.numpy(), minlength=len(species)))


def mean_and_least(receiver: Tensor) -> tuple[float, Any]:
    """How many edges end at an atom on average, and the first atom with an edge, as numbers of Python and NumPy."""
    ends = receiver.numpy()
    return float(np.bincount(ends).mean()), ends.min()


def ranking(features: Tensor) -> Tensor:
    """The place of each atom in the order of each feature."""
    return torch.from_numpy(np.argsort(np.argsort(features.detach().numpy(), axis=0), axis=0)).to(features.dtype)


class NumpyNumbers(Toy):
    """Numbers and an order of features are worked out by NumPy inside of forward."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        mean, least = mean_and_least(receiver)
        h = h + add_to(w * h[sender], receiver, h) / mean + 0.1 * least
        return h * (1 + ranking(h)) / len(h)


class NumpyRows(Toy):
    """A number for each atom is worked out by NumPy inside of forward."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        return h / (1 + neighbours(graph["species"], receiver))[:, None]


def without_edges() -> list[Graph]:
    """Graphs of which only positions, species and the cell are given."""
    graphs = plain()
    return [{key: graph[key] for key in ("positions", "species", "cell")} for graph in graphs]


def bare() -> list[tuple[Tensor, Tensor]]:
    """Positions and species of graphs without anything else."""
    graphs = [random_graph(n, seed=n) for n in (10, 17, 8)]
    return [(graph["positions"], graph["species"]) for graph in graphs]


def with_dihedrals() -> list[Graph]:
    """Graphs with pairs of edges, and pairs of those that share an edge."""
    graphs = plain(cutoff=1.9, angles=True)
    for graph in graphs:
        one, two = graph["angles"]
        left, right = torch.nonzero(two[:, None] == one[None, :], as_tuple=True)
        graph["dihedrals"] = torch.stack([left, right])[:, ::3]
    return graphs


FOUND_WITHIN = {
    "line graphs of line graphs": Adversary(
        LineGraphs, with_dihedrals, frozenset({"atoms", "edges", "angles", "angles2"})
    ),
    "line graph inside": Adversary(AllWithAll, spaces=frozenset({"atoms", "edges", "angles"})),
    "pairs and triples found within": Adversary(
        lambda: PairsAndTriplesWithin(lambda n: int(n)), bare, frozenset({"atoms", "edges", "edges_edges", "angles"})
    ),
    "neighbours looked for within": Adversary(PeriodicSearchWithin, without_edges),
    "triplets by NumPy": Adversary(
        lambda: TripletsWithin(by_loop=False), lambda: plain(cutoff=2.0), frozenset({"atoms", "edges", "angles"})
    ),
    "triplets by a loop over atoms": Adversary(
        lambda: TripletsWithin(by_loop=True), lambda: plain(cutoff=2.0), frozenset({"atoms", "edges", "angles"})
    ),
    "rows by NumPy": Adversary(NumpyRows),
    "numbers and features by NumPy": Adversary(NumpyNumbers),
}
