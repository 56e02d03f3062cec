"""Sizes that the model reads as numbers, or the graph states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from toys import Graph

from .toy import Adversary, F, Toy, add_to, plain


class PythonSizes(Toy):
    """Sizes that go through Python: ``int``, ``len``, arithmetic, lists of sizes."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n, n_edges = int(h.shape[0]), len(w)
        summed = torch.zeros(n, F, dtype=h.dtype).index_add(0, receiver, w * h[sender])
        h = h + summed * (n / max(n_edges, 1))
        flat = h.reshape(n * F).view([n, F])
        return torch.tanh(self.mix(flat)) * len(h) ** -0.5 + torch.ones(len(graph["species"]), 1, dtype=h.dtype)


class SizesAsFloats(Toy):
    """Sizes that go through ``float``, ``math``, NumPy and tensors."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n = h.shape[0]
        h = h + add_to(w * h[sender], receiver, h) / float(n)
        h = h * float(n**0.5) / math.sqrt(n) + math.log(n) / int(0.5 * n) / np.sqrt(n)
        sizes = torch.tensor([float(n), len(w)], dtype=h.dtype)
        return h + (sizes.log() / h.new_tensor(n)).sum() + 1 / torch.tensor(n)


class CountedAtoms(Toy):
    """The number of atoms is a Python integer of the graph."""

    def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n = graph["num_nodes"]
        summed = torch.zeros(n, F, dtype=h.dtype).index_add(0, receiver, w * h[sender])
        return torch.tanh(self.mix(h + summed)) / n


class SummedAtoms(Toy):
    """The number of atoms is that of all structures together: a sum, made a Python integer."""

    def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n = int(graph["sizes"].sum())
        summed = torch.zeros(n, F, dtype=h.dtype).index_add(0, receiver, w * h[sender])
        return torch.tanh(self.mix(h + summed)) / n


class AtomsOfEdges(Toy):
    """The number of atoms is one more than the largest that an edge names."""

    def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        summed = torch.zeros(int(graph["edge_index"].max()) + 1, F, dtype=h.dtype)
        return torch.tanh(self.mix(h + summed.index_add(0, receiver, w * h[sender])))


class CountedKinds(Toy):
    """A table as wide as there are kinds of atoms, of which the last column is read: torch follows no such width."""

    def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        table = torch.eye(int(graph["kinds"].max()) + 1, dtype=h.dtype)[graph["kinds"]]
        h = add_to(w * h[sender], receiver, h) / int(h.shape[0]) + table.cumsum(1)[:, -1:] * h
        return torch.tanh(self.mix(h)) * (1 + table[:, :1])


def counted() -> list[Any]:
    """Graphs that say how many atoms they have."""
    return [{**g, "num_nodes": len(g["positions"])} for g in plain()]


def with_sizes() -> list[Any]:
    """Graphs that say in a tensor how many atoms each of their structures has."""
    return [{**g, "sizes": torch.tensor([len(g["positions"])])} for g in plain()]


def with_kinds() -> list[Any]:
    """Graphs with atoms of five kinds."""
    return [{**g, "kinds": torch.arange(len(g["positions"])) % 5} for g in plain()]


NUMBERS = {
    "sizes in Python": Adversary(PythonSizes),
    "sizes as floats": Adversary(SizesAsFloats),
    "number of atoms in the graph": Adversary(CountedAtoms, counted),
    "number of atoms from the edges": Adversary(AtomsOfEdges),
    "number of kinds": Adversary(CountedKinds, with_kinds),
    "number of atoms summed": Adversary(SummedAtoms, with_sizes),
}
