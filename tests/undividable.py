"""Operators on rows of atoms or edges that no rule divides, each in a model that takes its forces and stress inside.

A function of the model, the graph, features of the atoms, weights of the edges and their lengths; what it returns are
new features of the atoms. All of it is what a user may write, and runs on one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from adversaries import F, ToReceivers, Toy, add_to
from torch import Tensor, nn
from toys import CUTOFF, Graph

Update = Callable[[Toy, Graph, Tensor, Tensor, Tensor], Tensor]


class Given(Toy):
    """Messages to the receivers, then what is given: of (model, graph, h, w, lengths)."""

    def __init__(self, then: Update) -> None:
        super().__init__()
        self.then = then

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        return self.then(self, graph, h, w, lengths)


class Adjacency(ToReceivers):
    """Reads a matrix of atoms by atoms that the graph holds."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        return super().update(graph, h, w, vectors, lengths) + graph["matrix"] @ h


def with_matrix(graph: Graph) -> Graph:
    """The graph with a matrix of atoms by atoms."""
    n = len(graph["positions"])
    return {**graph, "matrix": torch.linspace(-1, 1, n * n, dtype=torch.float64).reshape(n, n).sin()}


def atoms(then: Callable[[Tensor], Any]) -> Update:
    """Something that is done with the features of all atoms."""
    return lambda model, graph, h, w, lengths: then(h)


def edges(then: Callable[[Tensor], Any]) -> Update:
    """Something that is done with the weights of all edges, summed at their receivers."""
    return lambda model, graph, h, w, lengths: h + add_to(then(w), graph["edge_index"][1], h)


def charges(h: Tensor) -> Tensor:
    """Charges that balance, from a system of equations of all atoms: charge equilibration."""
    hardness = h @ h.T / F + 4 * torch.eye(h.shape[0], dtype=h.dtype)
    return torch.linalg.solve(hardness, h - h.mean(0))


def attention(h: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(h[None], h[None], h[None])[0]


def damped_pairs(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Every pair of atoms, without images, by its distance; read at the ends of edges again."""
    x = graph["positions"]
    far = ((x[:, None] - x[None]) ** 2).sum(-1)
    damped = torch.exp(-far / CUTOFF**2)
    sender, receiver = graph["edge_index"]
    return damped @ h / h.shape[0] + add_to(damped[sender, receiver][:, None] * w, receiver, h)


def adjacency_made(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """A matrix of atoms by atoms that is filled from edges, and applied twice."""
    sender, receiver = graph["edge_index"]
    n = h.shape[0]
    matrix = torch.zeros(n, n, dtype=h.dtype).index_put((receiver, sender), torch.exp(-lengths), accumulate=True)
    return torch.tanh(matrix @ (matrix @ h))


def one_more(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Messages along all edges and one from the first atom to the second."""
    sender, receiver = torch.cat([graph["edge_index"], torch.tensor([[0], [1]])], 1)
    return h + add_to(torch.cat([w, w.new_ones(1, F)]) * h[sender], receiver, h)


def without_running_statistics(h: Tensor) -> Tensor:
    return nn.functional.batch_norm(h, None, None, training=True)


def end_by_end(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Values end by end, added where ends are listed edge by edge."""
    return h + add_to(torch.cat([w, -w]), graph["edge_index"].T.reshape(-1), h)


def atoms_of_structures(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """A table of structures by atoms, added up over atoms by atoms: a column and a row by mistake, say."""
    batch = torch.zeros_like(graph["species"])
    return h + torch.zeros(1, len(h), dtype=h.dtype).index_add(0, batch, h[:, :1] + h[:, 1]).T


UNDIVIDABLE: dict[str, tuple[Update, str]] = {
    "a running sum over atoms": (atoms(lambda h: h.cumsum(0)), "runs along rows"),
    "a running sum over edges": (edges(lambda w: w.cumsum(0) / (1 + len(w))), "runs along rows"),
    "sorted features": (atoms(lambda h: h.sort(0).values), "rows compared"),
    "atoms in the order of a feature": (atoms(lambda h: h[h[:, 0].argsort()].cumsum(0)), "runs along rows"),
    "the largest three": (atoms(lambda h: h + h.topk(3, 0).values.sum()), "rows compared"),
    "a median": (atoms(lambda h: h - h.median()), "no placement rule"),
    "the largest row and where": (atoms(lambda h: h - h.max(0).values), "rows compared"),
    "all distances": (atoms(lambda h: h + torch.cdist(h, h).sum(1, True)), "every row"),
    "all pairs by a product": (atoms(lambda h: (h @ h.T) @ h), "every row with every row"),
    "all pairs by broadcasting": (atoms(lambda h: (h[:, None] - h[None]).tanh().sum(1)), "every row"),
    "all pairs added up in a table": (atoms_of_structures, "every row"),
    "all pairs of positions": (damped_pairs, "every row"),
    "a matrix of atoms by atoms": (atoms(lambda h: h + torch.zeros(len(h), len(h)).to(h) @ h), "every row"),
    "a matrix that edges fill": (adjacency_made, "every row"),
    "attention of all to all": (atoms(attention), "every row with every row"),
    "a system of equations": (atoms(charges), "every row with every row"),
    "atoms 2 to 5": (atoms(lambda h: h + h[2:5].sum()), "picked by number"),
    "every second atom": (atoms(lambda h: h + h[::2].sum()), "picked by number"),
    "two atoms by a list": (atoms(lambda h: h + h[torch.tensor([2, 0])].prod(0)), "rows picked by their numbers"),
    "the first half": (atoms(lambda h: h + h[torch.arange(len(h) // 2)].sum(0)), "rows picked by their numbers"),
    "one edge more than there are": (one_more, "different index spaces"),
    "atoms in reverse": (atoms(lambda h: h * h.flip(0)), "moved by number"),
    "atoms rolled": (atoms(lambda h: h * h.roll(1, 0)), "moved by number"),
    "features rolled to the next atom": (atoms(lambda h: h * h.roll(1)), "moved by number"),
    "differences of consecutive atoms": (atoms(lambda h: h + h.diff(dim=0).pow(2).mean(0)), "picked by number"),
    "a product of all": (atoms(lambda h: h + h.prod(0)), "not a sum"),
    "the sum of absolute values": (atoms(lambda h: h / h.norm(p=1)), "a norm over rows"),
    "a batch norm": (atoms(without_running_statistics), "no placement rule"),
    "a normalisation over all atoms": (
        atoms(lambda h: nn.functional.layer_norm(h, h.shape)),
        "normalisation over rows",
    ),
    "a diagonal": (atoms(lambda h: h + h.diagonal().sum()), "a diagonal over rows"),
    "a triangle": (atoms(lambda h: h.tril()), "a triangle over rows"),
    "atoms and a row more in one list": (atoms(lambda h: h + torch.cat([h, h[:1]]).sum()), "different index spaces"),
    "half of a joined list": (
        lambda m, g, h, w, r: h + torch.cat([h, w])[len(w) :].sum(),
        "picked by number",
    ),
    "lists joined in two orders": (
        lambda m, g, h, w, r: h + (torch.cat([h, w]) * torch.cat([w, h])).sum(),
        "different index spaces",
    ),
    "ends edge by edge, values end by end": (end_by_end, "2*edges"),
    "features of all atoms in a row": (
        atoms(lambda h: h + h.reshape(-1).cumsum(0).reshape(h.shape)),
        "runs along rows",
    ),
}
"""By what it does: the update, and words of why it is not divided."""
