"""Row numbers that are computed, constant, of several targets a row, or of places within rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import N_SPECIES, Graph, Result, envelope, gaussians

from .toy import SIZES, Adversary, F, Toy, add_to, plain


class PointerArithmetic(Toy):
    """Pointers that are computed: renumbered atoms, edges in another order, each atom's own number, offsets."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        n = h.shape[0]
        renumber = torch.arange(n).flip(0)
        sender, receiver = renumber[graph["edge_index"]]
        h = h[renumber]
        order = torch.argsort(receiver * n + sender, stable=True)
        h = h + add_to(w[order] * h[sender[order]], receiver[order], h)
        column = (graph["species"] + 1) % F
        diagonal = h[torch.arange(n), column]
        neighbour = (torch.arange(n) + 1) % n
        return h * diagonal[:, None] + self.mix(h)[neighbour]


class RowsWithinRows(Toy):
    """Sums by atom and species of the neighbour in one long list, at atom times species plus species; read back."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        at = torch.stack([sender, receiver]) * N_SPECIES + graph["species"][graph["edge_index"]].flip(0)
        long = h.new_zeros(len(h) * N_SPECIES, F)
        for one, other in (at, at.flip(0)):
            long.index_add_(0, one, w * torch.tanh(h)[receiver])
            long = long + 0.1 * torch.zeros_like(long).index_add(0, other, w * long[one])
        h = h + long.reshape(len(h), N_SPECIES * F)[:, F : 2 * F]
        return torch.tanh(self.mix(h))


class RowsByNumber(Toy):
    """The last atom pads the others and the first three are read by number, from the front and from the back."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = (h + add_to(w * h[sender], receiver, h)).clone()
        h[-1:].fill_(0.5)
        h[1] = torch.tanh(h[0])
        h = torch.cat([h[:-1], h.new_zeros(1, F)]) + torch.cat([h[2:3], h[1:]])
        return self.mix(h) * h[2] + h[-1] - h[-4:-3] * h[:1] + torch.tanh(h.T[:, 3])


class SpeciesTable(Toy):
    """Atoms are summed by species, and each atom reads the sums of its own species back."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        species = graph["species"]
        h = h + add_to(w * h[sender], receiver, h)
        table = self.embedding.weight.index_add(0, species, torch.tanh(h), alpha=0.1)
        pairs = h.new_zeros(N_SPECIES * N_SPECIES, F)
        pairs = pairs.index_add(0, species[sender] * N_SPECIES + species[receiver], w)
        return h * table[species] + pairs.reshape(N_SPECIES, N_SPECIES, F).sum(1)[species]


class Overwrite(Toy):
    """Some rows are overwritten through a pointer that names each at most once."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        centers = graph["centers"]
        kept = torch.zeros_like(h)
        kept[centers] = torch.tanh(self.mix(h[centers]))
        ordered = torch.empty_like(h)
        ordered[torch.argsort(graph["species"], stable=True)] = h
        filled = h.clone()
        filled[centers] = -0.5
        return kept + ordered * h + filled


class EndsAtOnce(Toy):
    """Both ends of an edge are read through one index of two rows, and added to through one list of all ends."""

    def forward(self, graph: Graph) -> Result:
        positions = graph["positions"].clone().requires_grad_()
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
        ends = graph["edge_index"]
        one, two = (positions @ deformation)[ends]
        vectors = one + graph["shifts"] @ (graph["cell"] @ deformation) - two
        w = self.radial(gaussians(vectors.norm(dim=-1)))
        h = self.embedding(graph["species"])
        for _ in range(2):
            near = h[ends.T]
            messages = torch.stack([w * near[:, 1], 0.5 * w * near[:, 0]], 1)
            h = torch.tanh(self.mix(h + add_to(messages.flatten(0, 1), ends.T.reshape(-1), h)))
        energy = self.readout(h).sum()
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain], create_graph=self.training)
        return {"energy": energy, "forces": -from_positions, "stress": from_strain}


class Triples(Toy):
    """Rows of three atoms each, which nothing else says the place of; rows of as many atoms as a graph has around."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        bent = h[graph["triples"]].prod(1)
        h = h + h.new_zeros(len(h), F).index_put((graph["triples"],), bent[:, None], accumulate=True)
        return h + add_to(h[graph["around"]].prod(1), graph["centers"], h)


class Padding(Toy):
    """Features beside columns of zeros, of ones, and some columns cut off."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        wide = nn.functional.pad(h[:, None], (-1, 2, 1, 0), value=1.0)
        return nn.functional.pad(h[:, :2], (1, F - 3)) * h + wide[:, 0, 1:] * wide[:, 1, 1:]


class NeighbourMatrix(Toy):
    """Neighbours are a row of numbers for each atom, filled up behind a mask; the longest row sets the width."""

    def more(self) -> None:
        self.attend = nn.MultiheadAttention(F, 2, batch_first=True)

    def forward(self, graph: Graph) -> Result:
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        positions = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
        neighbours, there = graph["neighbours"], graph["there"]
        moved = positions @ deformation
        images = graph["shifts"] @ (graph["cell"] @ deformation)
        squares = (moved[neighbours] + images - moved[:, None]).square().sum(-1)
        lengths = torch.where(there, squares, torch.ones_like(squares)).sqrt()
        w = self.radial(torch.exp(-lengths[..., None] * torch.linspace(0, 1, 6, dtype=lengths.dtype)))
        w = w * (envelope(lengths) * there)[..., None]
        h = self.embedding(graph["species"])
        for _ in range(2):
            near = h[neighbours]
            weight = (h[:, None] * near * w).sum(-1).masked_fill(~there, -1e9).softmax(-1)
            h = torch.tanh(self.mix(h + (weight[..., None] * w * near).sum(1)))
        first = torch.arange(there.shape[1]) == 0  # attention over nothing would be no number
        h = h + self.attend(h[:, None], h[neighbours], h[neighbours], key_padding_mask=~(there | first))[0][:, 0]
        energy = self.readout(h).sum()
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain], create_graph=self.training)
        volume = torch.linalg.det(graph["cell"]).abs()
        return {"energy": energy, "forces": -from_positions, "stress": from_strain / volume}


class Sorted(Toy):
    """Edges sorted by their receivers, and runs of them found in every way that torch has."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        ends, order = torch.sort(receiver, stable=True)
        atoms = torch.arange(len(h))
        counts = torch.bincount(receiver, minlength=len(h))
        h = h + add_to((w * h[sender])[order], ends, h) / (1 + counts)[:, None]
        held = w[order].detach().contiguous()  # torch has no second derivative of what comes next
        h = h + torch.segment_reduce(held, "sum", lengths=counts, axis=0)
        degree = torch.searchsorted(ends, atoms, right=True) - torch.searchsorted(ends, atoms)
        h = torch.tanh(h + add_to(w[order] * h.repeat_interleave(counts, 0), ends, h) / (1 + degree)[:, None])
        again = torch.repeat_interleave(atoms, counts)
        first, lengths_of_runs = torch.unique_consecutive(ends, return_counts=True)
        return (h + add_to(w[order], again, h)).index_add(0, first, 0.1 * lengths_of_runs[:, None] * h[first])


class Compressed(Toy):
    """The species that occur are numbered anew, and each atom reads the mean of its kind."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        found, kind, count = torch.unique(graph["species"], return_inverse=True, return_counts=True)
        mean = h.new_zeros(len(found), F).index_add(0, kind, h) / count[:, None]
        return h + mean[kind] + self.embedding(found)[kind]


def as_matrices() -> list[Graph]:
    """Graphs whose neighbours are rows of a matrix, as long as the longest needs and one longer."""
    graphs = []
    for graph in plain():
        sender, receiver = graph["edge_index"]
        n, order = len(graph["positions"]), torch.argsort(receiver, stable=True)
        counts = torch.bincount(receiver, minlength=n)
        row, column = receiver[order], torch.arange(len(order)) - (counts.cumsum(0) - counts)[receiver[order]]
        neighbours = torch.zeros(n, int(counts.max()) + 1, dtype=torch.int64)
        shifts, there = torch.zeros(*neighbours.shape, 3, dtype=torch.float64), neighbours > 0
        neighbours[row, column], shifts[row, column], there[row, column] = sender[order], graph["shifts"][order], True
        kept = {name: graph[name] for name in ("positions", "species", "cell")}
        graphs.append({**kept, "neighbours": neighbours, "shifts": shifts, "there": there})
    return graphs


def with_centers() -> list[Graph]:
    """Graphs that name some of their atoms, each once."""
    generator = torch.Generator().manual_seed(0)
    return [
        {**g, "centers": torch.randperm(n, generator=generator)[: n // 2 + 2]}
        for n, g in zip(SIZES, plain(), strict=True)
    ]


def with_triples() -> list[Graph]:
    """Graphs that name three atoms at a time, and some others around each of their centers."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randint(n, shape, generator=generator)

    graphs = []
    for n, graph in zip(SIZES, with_centers(), strict=True):
        around = some(len(graph["centers"]), 4 + n % 3)
        graphs.append({**graph, "triples": some(3 * n, 3), "around": around})
    return graphs


POINTERS = {
    "computed pointers": Adversary(PointerArithmetic),
    "rows within rows": Adversary(RowsWithinRows),
    "rows by number": Adversary(RowsByNumber),
    "species table": Adversary(SpeciesTable),
    "overwritten rows": Adversary(Overwrite, with_centers, frozenset({"atoms", "edges", "edges2"})),
    "both ends at once": Adversary(EndsAtOnce, lambda: plain(half=True)),
    "three atoms at once": Adversary(Triples, with_triples, frozenset({"atoms", "edges", "edges2", "edges3"})),
    "padding": Adversary(Padding),
    "neighbour matrix": Adversary(NeighbourMatrix, as_matrices, frozenset({"atoms"})),
    "sorted edges": Adversary(Sorted, spaces=frozenset({"atoms", "edges", "rows"})),
    "species compressed": Adversary(Compressed),
}
