"""Several structures in one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from toys import Graph, Result, gaussians, random_graph

from .toy import Adversary, F, Toy, add_to


class Batch(Toy):
    """Several structures in one graph: a row of results for each, however many there are."""

    def forward(self, graph: Graph) -> Result:
        n_graphs = graph["cells"].shape[0]
        sender, receiver = graph["edge_index"]
        batch = graph["batch"]
        strain = torch.zeros(n_graphs, 3, 3, dtype=graph["cells"].dtype, requires_grad=True)
        positions = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.transpose(1, 2)) / 2
        moved = torch.einsum("ni,nij->nj", positions, deformation[batch])
        cells = graph["cells"] @ deformation
        shifts = torch.einsum("ei,eij->ej", graph["shifts"], cells[batch[receiver]])
        vectors = moved[sender] + shifts - moved[receiver]
        lengths = vectors.norm(dim=-1)
        h = self.embedding(graph["species"])
        h = h + add_to(self.radial(gaussians(lengths)) * h[sender], receiver, h)
        sizes = torch.zeros(n_graphs, dtype=h.dtype).index_add(0, batch, torch.ones_like(h[:, 0]))
        mean = torch.zeros(n_graphs, F, dtype=h.dtype).index_add(0, batch, h) / sizes[:, None]
        h = torch.tanh(self.mix(h - mean[batch]))
        energies = self.readout(h).squeeze(-1)
        energy = torch.zeros(n_graphs, dtype=h.dtype).index_add(0, batch, energies)
        energy = energy + self.readout(mean.sin()).squeeze(-1)
        gradients = torch.autograd.grad(energy.sum(), [positions, strain], create_graph=self.training)
        volume = torch.linalg.det(graph["cells"]).abs()
        return {
            "energy": energy,
            "energy_per_atom": energy / sizes,
            "forces": -gradients[0],
            "stress": gradients[1] / volume[:, None, None],
        }


class CellsOfTwo(Toy):
    """Each edge reads the cell of its structure, of which the batch has two."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        cells = graph["cells"][graph["batch"][receiver]]
        stretched = torch.einsum("ei,eij->ej", vectors, cells).norm(dim=-1)
        return h + add_to(w * h[sender] * stretched[:, None], receiver, h)


class BatchFromOffsets(Toy):
    """The number of structures is read off their offsets, and each atom's structure off its number."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        n_graphs = graph["ptr"].numel() - 1
        sizes = graph["ptr"][1:] - graph["ptr"][:-1]
        batch = torch.repeat_interleave(torch.arange(n_graphs), sizes, output_size=h.shape[0])
        mean = h.new_zeros(n_graphs, F).index_add(0, batch, h) / sizes[:, None]
        return torch.tanh(self.mix(h)) * mean[batch]


class BatchCounted(Toy):
    """The number of structures is what a tensor of the graph holds: a size, as `number` makes one of it."""

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        self.number = number
        super().__init__()

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        mean = torch.zeros(self.number(graph["n_graphs"]), F, dtype=h.dtype).index_add(0, graph["batch"], h)
        return torch.tanh(self.mix(h)) * mean[graph["batch"]]


def batches(counts: tuple[int, ...], offsets: bool = False) -> list[Graph]:
    """Graphs of several structures each: of `counts` structures."""
    return [batch([random_graph(4 + (3 * i + k) % 5, seed=i, cutoff=2.6) for i in range(n)], offsets)
            for k, n in enumerate(counts)]  # fmt: skip


def counted_batches(counts: tuple[int, ...]) -> list[Graph]:
    """Batches that say in a tensor how many structures they have."""
    graphs = batches(counts, offsets=True)
    for graph in graphs:
        sizes = graph.pop("ptr").diff()
        graph |= {"n_graphs": torch.tensor(len(sizes)), "batch": torch.repeat_interleave(sizes)}
    return graphs


def batch(graphs: list[Graph], offsets: bool = False) -> Graph:
    """Structures side by side in one graph."""
    sizes = torch.tensor([len(g["positions"]) for g in graphs])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    joined = {name: torch.cat([g[name] for g in graphs]) for name in ("positions", "species", "shifts")}
    joined["edge_index"] = torch.cat([g["edge_index"] + start for g, start in zip(graphs, ptr, strict=False)], 1)
    if offsets:
        return {**joined, "ptr": ptr, "cell": graphs[0]["cell"]}
    return {
        **joined,
        "batch": torch.repeat_interleave(torch.arange(len(graphs)), sizes),
        "cells": torch.stack([g["cell"] for g in graphs]),
    }


def two_with_cells() -> list[Graph]:
    """Batches of two structures, beside the cell of the first one."""
    return [{**g, "cell": g["cells"][0]} for g in batches((2, 2, 2))]


BATCHES = {
    "batch of four and more": Adversary(Batch, lambda: batches((5, 4, 7, 1))),
    "batch counted by a tensor": Adversary(lambda: BatchCounted(lambda n: n), lambda: counted_batches((5, 6, 4))),
    "batch counted by int": Adversary(lambda: BatchCounted(lambda n: int(n)), lambda: counted_batches((5, 6, 4))),
    "batch counted by an item": Adversary(lambda: BatchCounted(Tensor.item), lambda: counted_batches((5, 6, 4))),
    "batch of two": Adversary(Batch, lambda: batches((2, 2, 2))),
    "cells of a batch of two": Adversary(CellsOfTwo, two_with_cells),
    "batch from offsets": Adversary(BatchFromOffsets, lambda: batches((5, 4, 7), offsets=True)),
}
