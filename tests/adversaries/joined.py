"""Lists that the model joins and cuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import CUTOFF, Graph, Result, envelope, gaussians

from .toy import Adversary, F, Toy, add_to, plain


class Concatenation(Toy):
    """Features side by side, split again, stacked."""

    def more(self) -> None:
        self.wide = nn.Linear(3 * F, 2 * F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        e = self.wide(torch.cat([h[sender], h[receiver], w], dim=-1))
        gate, value = e.chunk(2, dim=-1)
        h = h + add_to(torch.sigmoid(gate) * value * envelope(lengths)[:, None], receiver, h)
        a, b, c = torch.split(h, [1, 2, 3], dim=1)
        stacked = torch.stack([torch.cat([c, b, a], 1), h], dim=1)
        h = stacked.flatten(1)[:, 1 : F + 1]
        return h + add_to(w * h[sender], receiver, h)


class BothDirections(Toy):
    """A half list is completed inside of forward: every edge once more, the other way round; nothing else is used."""

    def forward(self, graph: Graph) -> Result:
        positions = graph["positions"].clone().requires_grad_()
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
        sender, receiver = torch.cat([graph["edge_index"], graph["edge_index"].flip(0)], dim=1)
        images = graph["shifts"] @ (graph["cell"] @ deformation)
        moved = positions @ deformation
        vectors = moved[sender] + torch.cat([images, -images]) - moved[receiver]
        w = self.radial(gaussians(vectors.norm(dim=-1)))
        h = self.embedding(graph["species"])
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        energy = self.readout(h).sum()
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain], create_graph=self.training)
        return {"energy": energy, "forces": -from_positions, "stress": from_strain, "pairs": w}


class Completed(Toy):
    """A half list is completed, and cut before or afterwards; edges are doubled and halved in every way."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        ends, within = graph["edge_index"], 0.8 * CUTOFF
        w = w * (within**2 - lengths**2)[:, None]
        if self.cut == "before":
            near = lengths < within
            ends, w = ends[:, near], w[near]
        full = torch.cat([ends, ends[[1, 0]]], 1)
        twice = torch.cat([w, w.sin()])
        if self.cut == "after":
            near = torch.cat([lengths, lengths]) < within
            return h + add_to(twice[near] * h[full[0, near]], full[1, near], h)
        degree = torch.bincount(full[1], minlength=len(h)).to(h.dtype).clamp(min=1)[:, None]
        messages = w.repeat(2, 1) * twice * h[full[0]] / degree[full[1]]
        one, two = messages[: len(w)], messages[len(w) :]
        h = h + add_to(messages, full[1], h) + add_to(messages.chunk(2)[1] * one, ends[0], h)
        return h + add_to(messages.reshape(2, -1, F).prod(0) - messages.split(len(w))[0] * two, ends[1], h)


class PairsOfDirections(Toy):
    """Twice as many edges as bonds: edges say of which bond they are, and bonds say an edge, wherever in the list."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        bonds = torch.tanh(self.mix(w[graph["edge_of_bond"]]))
        twice = torch.cat([bonds, bonds.sin()]) * w * h[sender]
        bonds = bonds + add_to(twice, graph["bond_of_edge"], bonds)
        return h + add_to(bonds[graph["bond_of_edge"]] * w, receiver, h)


class SelfLoops(Toy):
    """Every atom is a neighbour of its own: a list of edges followed by atoms, one of atoms, edges, edges back."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        ends, n = graph["edge_index"], len(h)
        loops = torch.arange(n).expand(2, n)
        sender, receiver = torch.cat([ends, loops], 1)
        messages = torch.cat([w, self.mix(h)]) * h[sender]
        h = h + add_to(messages, receiver, h) * messages[len(w) :]
        sender, receiver = torch.cat([loops, ends, ends.flip(0)], 1)
        return h + add_to(torch.cat([torch.ones_like(h), w, -w]) * h[sender], receiver, h)


class AllRowsInOneList(Toy):
    """The mean over atoms and edges together."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        return h + torch.tanh(torch.cat([h, w])).mean(0)


def with_bonds() -> list[Graph]:
    """Graphs whose edges are in any order, with the number of the bond of each, and of an edge of each bond."""
    graphs = []
    for half in plain(half=True):
        n = half["edge_index"].shape[1]
        order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(n))
        bond = torch.arange(n).repeat(2)[order]
        both = torch.cat([half["edge_index"], half["edge_index"].flip(0)], 1)[:, order]
        shifts = torch.cat([half["shifts"], -half["shifts"]])[order]
        more = {"bond_of_edge": bond, "edge_of_bond": order.argsort()[:n]}
        graphs.append({**half, "edge_index": both, "shifts": shifts, **more})
    return graphs


JOINED = {
    "concatenation": Adversary(Concatenation),
    "half list completed": Adversary(
        BothDirections, lambda: plain(half=True), frozenset({"atoms", "edges", "edges_edges"})
    ),
    "half list completed, with more": Adversary(
        lambda: Completed("never"), lambda: plain(half=True), frozenset({"atoms", "edges", "edges_edges"})
    ),
    "half list cut, then completed": Adversary(
        lambda: Completed("before"), lambda: plain(half=True), frozenset({"atoms", "edges", "edges2", "edges2_edges2"})
    ),
    "half list completed, then cut": Adversary(
        lambda: Completed("after"), lambda: plain(half=True), frozenset({"atoms", "edges", "edges_edges", "edges2"})
    ),
    "both directions of bonds in any order": Adversary(
        PairsOfDirections, with_bonds, frozenset({"atoms", "edges", "edges_edges"})
    ),
    "self loops": Adversary(SelfLoops, spaces=frozenset({"atoms", "edges", "edges_atoms", "atoms_edges_edges"})),
    "atoms and edges in one list": Adversary(AllRowsInOneList, spaces=frozenset({"atoms", "edges", "atoms_edges"})),
}
