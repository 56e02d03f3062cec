"""What models do with tables and lists, each divided: written row by row, summed into meshes, by kinds of atoms.

Updates as in `undividable.py`: of the model, the graph, features of the atoms, weights of the edges and their lengths.
"""

from __future__ import annotations

import torch
from adversaries import F, Toy, add_to
from torch import Tensor
from toys import Graph
from undividable import Update, atoms

ONE, OTHER = torch.tensor([0, 2, 4]), torch.tensor([5, 3, 1])


def wigner(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Matrices of atoms whose elements are written by two constant lists."""
    matrices = h.new_zeros(h.shape[0], F, F)
    matrices[..., ONE, OTHER] = h[:, :3]
    matrices[..., OTHER, ONE] = h[:, 3:].sin()
    return torch.einsum("nij,nj->ni", matrices, h)


def wigner_last(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """The same with atoms in the last dimension."""
    matrices = h.new_zeros(F, F, h.shape[0])
    matrices[ONE, OTHER] = h[:, :3].T
    return h + matrices.sum((0, 1))[:, None]


def one_row_for_all(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Rows of a mask, over atoms and over edges, are given one and the same value."""
    receiver = graph["edge_index"][1]
    x, y = h[:, :3].clone(), w[:, :3].clone()
    x[graph["species"] == 1] = x.new_tensor([0.0, 1.0, 0.0])
    y[lengths < 2.2] = y.new_tensor([[0.0, 1.0, 0.5]])
    return h + x.repeat(1, 2) + add_to(y.repeat(1, 2), receiver, h)


def neighbours_in_a_table(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Edges in a table of atoms by neighbours, each in a place of its own."""
    order = graph["edge_index"][1].argsort(stable=True)
    receiver = graph["edge_index"][1][order]
    count = torch.bincount(receiver, minlength=h.shape[0])
    place = torch.arange(receiver.shape[0]) - (count.cumsum(0) - count)[receiver]
    table = h.new_zeros(h.shape[0], int(count.max()), F)
    table[receiver, place] = w[order]
    return h + table.tanh().sum(1)


def mesh(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Charges on a mesh of fixed size, by fractional coordinates; the potential of its Fourier transform read back."""
    fractional = torch.linalg.solve(graph["cell"].T, graph["positions"].T).T
    x, y, z = ((fractional.detach() * 4).floor().long() % 4).T
    charges = torch.zeros(4, 4, 4, dtype=h.dtype).index_put((x, y, z), h[:, 0], accumulate=True)
    potential = torch.fft.irfftn(torch.fft.rfftn(charges) * 0.3, s=(4, 4, 4))
    return h * potential[x, y, z][:, None] + fractional.sin().repeat(1, 2)


def meshes(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Meshes of as many points as the cell is long, one for each feature, written one after another."""
    n = graph["cell"].norm(dim=1).ceil().long()
    x, y, z = ((graph["positions"].detach() * 2).floor().long() % n).T
    charges = torch.zeros(F, int(n[0]), int(n[1]), int(n[2]), dtype=h.dtype)
    for i in range(F):
        charges[i].index_put_((x, y, z), h[:, i], accumulate=True)
    return h + charges.tanh()[:, x, y, z].T


def flat_mesh(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """The same by one number for each point, with complex values."""
    places = (graph["positions"].detach() * 2).floor().long() % 4
    flat = places @ torch.tensor([16, 4, 1])
    density = torch.fft.fftn(torch.zeros(64, dtype=h.dtype).index_add(0, flat, h[:, 0]).reshape(4, 4, 4))
    return h * torch.fft.ifftn(density / (1 + density.abs())).real.reshape(-1)[flat][:, None]


def histogram(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Edges counted by their lengths."""
    bins = (lengths.detach() * 3).long().clamp(max=8)
    found = torch.zeros(9, dtype=h.dtype).scatter_add(0, bins, lengths)
    return h * found.tanh()[bins].mean()


def kind_by_kind(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """A loop over the species that there are."""
    found = torch.zeros_like(h)
    for z in graph["species"].unique().tolist():
        mask = graph["species"] == z
        found[mask] = h[mask] * (z + 1)
    return found


def two_tables(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Embeddings looked up by atoms, and by both ends of edges at once, one of them with padding."""
    padded = torch.nn.functional.embedding(graph["species"], model.embedding.weight, padding_idx=1)
    ends = model.embedding(graph["species"][graph["edge_index"].T])
    return h * padded + add_to(ends.prod(1) * w, graph["edge_index"][1], h)


def circular_convolution(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
    """Features of each atom convolved with weights by Fourier transforms along them, real and complex."""
    kernel = torch.fft.rfft(model.embedding.weight[0])
    smooth = torch.fft.irfft(torch.fft.rfft(h, dim=1) * kernel, n=F, dim=1)
    phases = torch.fft.fft(torch.fft.ifft(torch.tanh(h), dim=1, norm="ortho").conj() * 2, dim=-1).real
    return smooth + torch.fft.hfft(torch.fft.ihfft(phases), n=F)


EVERYDAY: dict[str, Update] = {
    "elements written by two lists": wigner,
    "elements written by two lists, rows last": wigner_last,
    "one row written to all rows of a mask": one_row_for_all,
    "rows written by a constant list": atoms(lambda h: h.index_put((torch.tensor([0, 2]),), h.new_zeros(F))),
    "neighbours in a table": neighbours_in_a_table,
    "a mesh": mesh,
    "several meshes": meshes,
    "a flat mesh of complex values": flat_mesh,
    "a histogram": histogram,
    "species in a loop": kind_by_kind,
    "embedding tables": two_tables,
    "Fourier transforms of features": circular_convolution,
}
