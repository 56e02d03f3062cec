"""Tiny potentials, each of which uses an index space in one way that a compiler may get wrong.

All are in float64 and take their gradients inside. In training mode these can be differentiated again. `ADVERSARIES`
lists them with graphs of three sizes; a program is compiled on the first and must serve the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import CUTOFF, N_SPECIES, Graph, Result, envelope, gaussians, random_graph, seeded

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


class ToReceivers(Toy):
    """Messages are summed where edges end."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        return h


class ToSenders(Toy):
    """Messages are summed where edges start."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[receiver], sender, h)))
        return h


class ToBothEnds(Toy):
    """Messages are summed at both ends, so that one of them belongs to another rank."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h) - 0.5 * add_to(w * h[receiver], sender, h)))
        return h


class Squares(Toy):
    """Squares of sums that are read at both ends, beside the sums: their gradient is a sum of the same twice."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        sender, receiver = graph["edge_index"]
        w = torch.exp(-lengths) * (1 + self.readout(self.embedding(graph["species"])).squeeze(1)[sender] ** 2)
        a = add_to(w, receiver, graph["species"])
        q = a * a
        return (w * torch.sin(q[sender]) * q[receiver] * a[sender] * a[receiver]).sum(), {}


class LongestEdge(Toy):
    """The longest of all edges scales the others, and the largest of all atoms the atoms; a rank may have none."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        longest, shortest = lengths.detach().max(), lengths.detach().amin()
        h = h + add_to(w * (lengths / longest + shortest / lengths)[:, None] * h[sender], receiver, h)
        return torch.tanh(self.mix(h - h.detach().amax(0) * h.softmax(0)))


class SegmentSoftmax(Toy):
    """Attention weights sum to one over the edges of an atom: those that end there, or those that start there.

    The largest score is subtracted first, as every library does; most hold it fixed, as its gradient vanishes.
    """

    def __init__(self, over: str = "receiver", detach: bool = True) -> None:
        super().__init__()
        self.over, self.hold = over, detach

    def more(self) -> None:
        self.score = nn.Linear(2 * F, 1)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        at = receiver if self.over == "receiver" else sender
        score = self.score(torch.cat([w * h[sender], h[receiver]], -1)).squeeze(-1)
        largest = score.new_full((h.shape[0],), -torch.inf)
        largest = largest.scatter_reduce(0, at, score.detach() if self.hold else score, "amax")
        weight = (score - largest[at]).exp() * envelope(lengths)
        weight = weight / (add_to(weight, at, h) + 1e-6)[at]
        return h + add_to(weight[:, None] * w * h[sender], receiver, h)


class SegmentMax(Toy):
    """The largest message of each channel, at the receiver or at the sender, beside a sum at the receiver."""

    def __init__(self, at: str = "receiver", include_self: bool = True) -> None:
        super().__init__()
        self.at, self.include_self = at, include_self

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        at, other = (receiver, sender) if self.at == "receiver" else (sender, receiver)
        index = at[:, None].expand(-1, F)
        largest = (0.1 * h).scatter_reduce(0, index, w * h[other], "amax", include_self=self.include_self)
        smallest = torch.zeros_like(h).scatter_reduce(0, index, w, "amin", include_self=self.include_self)
        summed = add_to(torch.cat([w, w * w, w * h[sender]], -1), receiver, h)
        return h + largest - smallest + summed[:, :F] + 0.1 * summed[:, 2 * F :]


class LargestPart(Toy):
    """The largest message, which is a part of what was computed at once, at the receiver."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        one, two = torch.split(
            torch.cat([w * h[sender], w], 1) @ torch.cat([self.mix.weight, self.mix.weight]), F // 2, 1
        )
        index = receiver[:, None].expand(-1, F // 2)
        largest = torch.zeros_like(h[:, : F // 2]).scatter_reduce(0, index, one, "amax", include_self=False)
        return torch.tanh(self.mix(h + torch.cat([largest, add_to(two, receiver, largest)], 1)))


class ScatterMean(Toy):
    """The mean of the messages of an atom, with and without its own features."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        index = receiver[:, None].expand_as(w)
        without = torch.zeros_like(h).scatter_reduce(0, index, w * h[sender], "mean", include_self=False)
        h = torch.tanh(self.mix(h + without))
        back = sender[:, None].expand_as(w)
        with_self = h.scatter_reduce(0, back, w * h[receiver], "mean", include_self=True)
        total = torch.zeros_like(h).scatter_reduce(0, index, w * with_self[sender], "sum")
        species = graph["species"][:, None].expand_as(h)
        kind = torch.zeros(N_SPECIES, F, dtype=h.dtype).scatter_reduce(0, species, h, "mean", include_self=False)
        whole = torch.zeros(1, F, dtype=h.dtype)
        whole.index_reduce_(0, torch.zeros_like(graph["species"]), h, "mean", include_self=False)
        return with_self + total + kind[graph["species"]] + whole


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


class Scale(nn.Parameter):
    """A weight of a class of its own."""


class OwnWeights(Toy):
    """A weight that is of a class of the model's own."""

    def more(self) -> None:
        self.scale = Scale(torch.linspace(0.5, 1.5, F))

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        return h + add_to(w * self.scale * h[sender], receiver, h)


class EdgeOutputs(Toy):
    """Results with a row for each edge and for each atom."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        sender, receiver = graph["edge_index"]
        h = self.embedding(graph["species"])
        w = self.radial(gaussians(lengths)) * h[sender]
        pair = self.readout(torch.tanh(w + add_to(w, receiver, h)[receiver])).squeeze(-1) * envelope(lengths)
        (pull,) = torch.autograd.grad(pair.sum(), vectors, create_graph=True)
        others = {"energies": add_to(pair, receiver, h), "pairs": pair, "pulls": pull, "messages": w.reshape(-1, 2, 3)}
        return pair.sum(), {**others, "lengths": lengths, "outer": pull[:, :, None] * vectors[:, None]}


class AtomMasks(Toy):
    """Atoms chosen by a mask: read, overwritten, filled, and kept apart by ``where``."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        chosen = graph["species"] == 1
        weights = self.mix(h)
        h = h.clone()
        h[chosen] = torch.tanh(weights[chosen])
        fixed = torch.where(chosen[:, None], h, weights)
        fixed[graph["species"] == 0] = 0.25
        few = self.readout(h[~chosen]).sum()
        return h + fixed.masked_fill(chosen[:, None], 0.5) + 0.1 * few


class EdgeMasks(Toy):
    """Edges chosen by their species and by their length, which depends on positions."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        short = lengths < 0.7 * CUTOFF
        near_sender, near_receiver = graph["edge_index"][:, short]
        h = h + add_to(w[short] * h[near_sender] * (0.49 - (lengths[short] / CUTOFF) ** 2)[:, None], near_receiver, h)
        alike = graph["species"][sender] == graph["species"][receiver]
        w = w.clone()
        w[alike] = 0.0
        return h + add_to(w * h[sender], receiver, h) + 0.01 * envelope(lengths[alike]).sum()


class ElementMasks(Toy):
    """Single elements, and columns, that masks choose are overwritten by what is computed of them."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = (h + add_to(w * h[sender], receiver, h))[None].clone()
        h[h > 0.1] -= 0.2 * h[h > 0.1] ** 2
        h[h < -0.5] = 0.25
        odd = graph["species"].bincount(minlength=F)[:F] % 2 == 1
        h[:, :, odd] = torch.tanh(h[:, :, odd])
        return h.squeeze(0)


class _Step(torch.autograd.Function):
    """exp(-1/x) where x is positive, and its derivative, written with masks over elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.zeros_like(x)
        y[x > 0] = (-1 / x[x > 0]).exp()
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.zeros_like(x)
        above = x[x > 0]
        slope[x > 0] = (-1 / above).exp() / above**2
        return gradient * slope


class MasksInBackward(Toy):
    """A function with a backward of its own, which needs the same cures as a forward."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        return h + add_to(_Step.apply(w) * h[sender], receiver, h)


class MeanOfChosen(Toy):
    """The mean over the atoms that a mask chooses, whose number is known at run time only."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        return h - h[graph["species"] > 0].mean(0)


class MaskedSelect(Toy):
    """Edges chosen by ``masked_select``, which has a gradient of its own."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        alike = graph["species"][sender] == graph["species"][receiver]
        return h + add_to(w * h[sender], receiver, h) + 0.01 * torch.masked_select(lengths, alike).sum()


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


class ChargeEquilibration(Toy):
    """Charges that add up to zero: a sum over all atoms goes back into every atom, twice."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        n = h.shape[0]
        for _ in range(2):
            charge = self.readout(torch.tanh(h)).squeeze(-1)
            charge = charge - charge.sum() / n
            potential = add_to(envelope(lengths) * charge[sender], receiver, h)
            h = torch.tanh(self.mix(h * (charge * potential)[:, None] + charge[:, None]))
        return h


class GlobalStatistics(Toy):
    """Features are normalised by mean, variance and norm over all atoms, as a batch normalisation does."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        h = (h - h.mean(0)) / (h.var(0) + 0.1).sqrt()
        h = h / (1 + h.norm() / h.numel() ** 0.5) + h.mean() + 0.1 * h.var(unbiased=False)
        return torch.tanh(self.mix(h)) + 0.1 * h.std(0, keepdim=True) + 0.01 * h.norm(dim=0)


class GlobalMax(Toy):
    """Features divided by the largest of all atoms, which no gradient follows."""

    def __init__(self, detach: bool = True) -> None:
        super().__init__()
        self.hold = detach

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        fixed = h.detach() if self.hold else h
        return h / (1 + fixed.abs().amax()) + fixed.amax(0) - fixed.min()


class GlobalSoftmax(Toy):
    """Attention of one query to all atoms, the free energy of all, and whether any is what all are not."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        fixed = h.clamp(max=0.1)  # of which several are as large as the largest
        h = h + h.softmax(0) * h + torch.logsumexp(h, 0) + 0.1 * h.log_softmax(0) + fixed.amax(0) * h
        odd = (lengths > 2.5).any().to(h.dtype) + 2 * (lengths > 2.5).all().to(h.dtype)
        return 0.1 * h * (1 + odd) + 0.1 * torch.logsumexp(h, (0, 1)) + 0.1 * h.max()


class BranchOnFeatures(Toy):
    """Vectors of each atom are spread over their range of lengths, unless all are zero: a branch on wide features."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        v = torch.zeros(len(h), 3, F, dtype=h.dtype)
        for _ in range(3):
            v = self.spread(v + add_to(w[:, None] * vectors[:, :, None] + w[:, None] * v[sender], receiver, h))
        return torch.tanh(self.mix(h + v.sum(1)))

    def spread(self, v: Tensor) -> Tensor:
        """Lengths between 0 for the shortest and 1 for the longest vector of each atom."""
        length = v.norm(dim=1, keepdim=True)
        if (length == 0).all():
            return v
        length = length.clamp(min=1e-12)
        least, most = length.amin(-1), length.amax(-1)
        span = (most - least).view(-1)
        span = torch.where(span == 0, torch.ones_like(span), span)
        return v / length * ((length - least.view(-1, 1, 1)) / span.view(-1, 1, 1)).relu()


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


class SameMemory(ToReceivers):
    """Asks by their addresses whether two tensors are one."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        known = {tensor.data_ptr(): name for name, tensor in graph.items()}
        same = known[graph["edge_index"].view(-1).data_ptr()] == "edge_index" and vectors.data_ptr() != w.data_ptr()
        return super().update(graph, h if same else 2 * h, w, vectors, lengths)


class SpeciesCounts(Toy):
    """How many atoms of each species there are is a number in the energy, of the whole graph on every rank."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        counts = torch.bincount(graph["species"], minlength=N_SPECIES)
        fraction = counts.to(h.dtype) / h.shape[0]
        degree = torch.bincount(receiver, minlength=h.shape[0])
        h = h + add_to(w * h[sender], receiver, h) / (1 + degree)[:, None].to(h.dtype)
        return h * fraction.max() + 0.01 * (counts**2).sum() / counts.sum()


class SpeciesCountsReadBack(Toy):
    """Each atom reads how many atoms are of its species."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        counts = torch.bincount(graph["species"], minlength=N_SPECIES)
        fraction = counts.to(h.dtype) / h.shape[0]
        h = h + add_to(w * h[sender], receiver, h) / (1 + counts[graph["species"]])[:, None].to(h.dtype)
        return h * fraction[graph["species"]][:, None]


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


class Attention(Toy):
    """Several heads of attention over the neighbours of each atom, with keys and queries of both ends."""

    def more(self) -> None:
        self.query, self.key, self.value = (nn.Linear(F, 2 * 3) for _ in range(3))

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            q, k, v = (f(h).view(-1, 2, 3) for f in (self.query, self.key, self.value))
            score = torch.einsum("ehd,ehd->eh", q[receiver], k[sender]) / 3**0.5
            largest = torch.full_like(h[:, :2], -torch.inf)
            largest = largest.scatter_reduce(0, receiver[:, None].expand(-1, 2), score.detach(), "amax")
            weight = (score - largest[receiver]).exp() * envelope(lengths)[:, None]
            weight = weight / (add_to(weight, receiver, h)[receiver] + 1e-6)
            message = torch.einsum("eh,ehd->ehd", weight, v[sender]).reshape(-1, F)
            h = h + add_to(w * message, receiver, h)
        return h


class TensorProducts(Toy):
    """Equivariant products: several dimensions of features, einsum, batched products, constant coefficients."""

    def more(self) -> None:
        self.paths = nn.Parameter(torch.zeros(F, F, 3))
        epsilon = torch.zeros(3, 3, 3)
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            epsilon[i, j, k], epsilon[i, k, j] = 1, -1
        self.register_buffer("epsilon", epsilon)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        u = vectors / lengths[:, None]
        v = add_to(torch.einsum("ef,ei->efi", w * h[sender], u), receiver, h)
        mixed = torch.einsum("nfij,fgp->ngpij", v[..., None] * v[:, :, None], self.paths)
        trace = torch.einsum("ngpii->ngp", mixed).sum(-1)
        turned = torch.einsum("nfij,ijk->nfk", torch.einsum("nfi,nfj->nfij", v, v.roll(1, 1)), self.epsilon)
        gram = torch.bmm(v, v.transpose(1, 2))
        lengthwise = torch.matmul(gram, self.mix.weight).diagonal(dim1=1, dim2=2)
        cross = torch.linalg.cross(v, turned)
        contracted = torch.tensordot(turned, self.paths, ([1], [0])).sum((1, 3))
        return h + trace + lengthwise + (cross * v.flip(1)).sum(-1) + contracted


class ThreeOperands(Toy):
    """An einsum of more than two operands, which chooses the order of its products by their sizes."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        return h + torch.einsum("nf,fg,ng->n", h, self.mix.weight, h)[:, None]


class LinearAlgebra(Toy):
    """Matrices of atoms and edges: rotations, inverses, factors, determinants, powers, and equations solved."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        outer = vectors[:, :, None] * vectors[:, None]
        unit = torch.eye(3, dtype=h.dtype)
        h = h + add_to(w * h[sender] / torch.linalg.det(outer + unit)[:, None], receiver, h)
        a = unit + 0.1 * add_to(outer, receiver, h)
        turned = torch.linalg.svd(a + 0.1 * h[:, :3, None] * h[:, None, 3:])
        rotation = turned.U @ turned.Vh
        solved = torch.linalg.solve(a, h.reshape(-1, 3, 2)).flatten(1) + torch.linalg.solve(a, h[:, 3:]).repeat(1, 2)
        factor = torch.linalg.cholesky(a)
        lower = torch.linalg.solve_triangular(factor, h.reshape(-1, 3, 2), upper=False).flatten(1)
        scale = torch.linalg.slogdet(a).logabsdet + torch.linalg.inv(a).sum((1, 2)) + torch.linalg.det(a).sqrt()
        scale = scale + torch.matrix_exp(-a).sum((1, 2)) + torch.linalg.eigvalsh(a).sin().sum(1)
        return solved + lower + (scale + rotation.sum((1, 2)) + torch.linalg.qr(a).R[:, 0, 2])[:, None] * h


class LayerNorm(Toy):
    """Normalisation of each atom's features, with weights."""

    def more(self) -> None:
        self.norm = nn.LayerNorm(F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = self.norm(h + add_to(w * h[sender], receiver, h))
        h = nn.functional.silu(self.mix(h))
        return h + torch.softmax(h, dim=-1) + nn.functional.layer_norm(h, (F,))


class OrderWithinRows(Toy):
    """The largest, the first three and the sorted features of each atom; their spread."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        first = h.topk(3, dim=-1).values
        spread = h / (1 + h.var(dim=-1, keepdim=True)) + h.std(dim=1, keepdim=True)
        return spread + h.max(dim=1, keepdim=True).values - first.prod(-1, keepdim=True) * h.sort(dim=-1).values


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


class Keeping(Toy):
    """Keeps tensors of a call: in attributes, in lists, and in a dict by the number of atoms."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, Tensor] = {}
        self.last: list[Any] = [None]
        self.register_buffer("total", None)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n = h.shape[0]
        if n not in self.numbers:
            self.numbers[n] = torch.arange(n, dtype=h.dtype)
        self.last[0] = {"h": (h,)}
        self.total = h.sum(0)
        h = h + add_to(w * h[sender], receiver, h) + 0.1 * self.total
        return h * self.numbers[n][:, None].cos() + self.last[0]["h"][0]


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


class ComplexFeatures(Toy):
    """Complex features of edges, summed at both ends, conjugated, multiplied, read as pairs of real numbers."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        harmonic = torch.view_as_complex(vectors[:, :2].contiguous()) ** 2
        z = torch.complex(w, 0.3 * w * h[sender]) * torch.exp(1j * lengths)[:, None] * harmonic[:, None]
        one, two = (torch.zeros(len(h), F, dtype=z.dtype).index_add(0, at, z) for at in (receiver, sender))
        back = (one[sender] * two[receiver].conj()).imag
        h = torch.tanh(h + one.abs() + (two * two.conj()).real + one.real * one.imag)
        return h + 0.01 * add_to(back, receiver, h) + torch.view_as_real(one).square().sum(-1) + z.sum().real / len(h)


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


class CutInForward(Toy):
    """Edges are cut by their lengths inside of forward, positive features picked one by one, bins of lengths read."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        (near,) = torch.where(lengths < 2.0)
        message = (w[near] * h[sender[near]]) * (4 - lengths[near] ** 2)[:, None]
        h = h + add_to(message, receiver[near], h)
        edges = torch.tensor([1.0, 2.0], dtype=lengths.dtype)
        h = h + add_to(self.embedding(torch.bucketize(lengths.detach(), edges)) * w, receiver, h)
        column = torch.take_along_dim(h, graph["species"][:, None], 1)
        return torch.tanh(h) * column + h[h > 0].sum() / len(h)


class Transformed(Toy):
    """Parts run under ``vmap``, under ``checkpoint``, and into a tensor given before."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        summed = torch.zeros_like(h)
        summed.scatter_add_(0, receiver.unsqueeze(-1).expand(-1, F), w * h[sender])
        h = h + torch.vmap(lambda row: torch.tanh(row @ self.mix.weight).cumsum(0))(summed)
        return checkpoint(lambda rows: torch.tanh(self.mix(rows)), h, use_reentrant=False)  # type: ignore[no-any-return]


class FunctionalGradients(Toy):
    """Forces by ``torch.func``."""

    def forward(self, graph: Graph) -> Result:
        sender, receiver = graph["edge_index"]

        def energies(positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
            vectors = positions[sender] + graph["shifts"] @ cell - positions[receiver]
            h = self.embedding(graph["species"])
            h = h + add_to(self.radial(gaussians(vectors.norm(dim=-1))) * h[sender], receiver, h)
            each = self.readout(torch.tanh(h)).squeeze(-1)
            return each.sum(), each

        gradients, (energy, each) = torch.func.grad_and_value(energies, (0, 1), has_aux=True)(
            graph["positions"], graph["cell"]
        )
        return {"energy": energy, "energies": each, "forces": -gradients[0], "virial": gradients[1]}


class Detached(Toy):
    """Values that the model detaches are held fixed when it is trained, too."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender].detach(), receiver, h)
        return torch.tanh(self.mix(h)) + 0.1 * h.data * h


class WithoutGradients(Toy):
    """Values that the model computes under ``no_grad`` are held fixed when it is trained, too."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        with torch.no_grad():
            scale = add_to(w, receiver, h).norm(dim=-1, keepdim=True) + 1
        return torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h) / scale))


class PassThrough(Toy):
    """Inputs returned as they are, a number, a text, nothing, and a constant of the model."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        sender, receiver = graph["edge_index"]
        h = self.embedding(graph["species"])
        h = h + add_to(self.radial(gaussians(lengths)) * h[sender], receiver, h)
        others = {
            "positions": graph["positions"],
            "species": graph["species"],
            "edge_index": graph["edge_index"],
            "cutoff": CUTOFF,
            "name": "toy",
            "nothing": None,
            "table": self.embedding.weight,
            "several": [graph["cell"], (graph["shifts"], 3)],
            "features": h,
        }
        return self.readout(torch.tanh(h)).sum(), others


@dataclasses.dataclass
class Structure:
    """A graph as an object."""

    positions: Tensor
    species: Tensor
    edges: Edges
    cell: Tensor
    name: str = "toy"


class Edges(NamedTuple):
    """The edges of a graph."""

    index: Tensor
    shifts: Tensor


class FromDataclass(ToReceivers):
    """Takes a dataclass that holds a named tuple."""

    def forward(self, structure: Structure) -> Result:
        inside = {"edge_index": structure.edges.index, "shifts": structure.edges.shifts}
        names = ("positions", "species", "cell")
        return super().forward({**inside, **{name: getattr(structure, name) for name in names}})


class FromNestedDicts(ToReceivers):
    """Takes dicts and lists within a dict; returns dicts within a list."""

    def forward(self, graph: Any) -> Any:
        (edges,) = graph["edges"]
        result = super().forward({**graph["nodes"], **edges, "cell": graph["box"][0]})
        return [{"energy": result["energy"]}, {"forces": result["forces"], "rest": (result["stress"], [])}]


class TwoInputs(ToReceivers):
    """Takes two positional inputs, a graph and a cell; returns a tuple."""

    def forward(self, graph: Graph, cell: Tensor) -> Any:
        result = super().forward({**graph, "cell": cell})
        return result["energy"], result["forces"], result["stress"]


SIZES = (10, 17, 5)
"""Atoms of the graphs: the example, and what its program must serve too."""


def plain(**options: Any) -> list[Graph]:
    """Graphs of `SIZES` atoms."""
    return [random_graph(n, seed=n, **{"cutoff": 2.6, **options}) for n in SIZES]


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


def few_with_edges() -> list[Graph]:
    """Graphs, of which in the last one only two atoms have edges."""
    *graphs, last = plain()
    kept = (last["edge_index"] < 2).all(0)
    return [*graphs, {**last, "edge_index": last["edge_index"][:, kept].contiguous(), "shifts": last["shifts"][kept]}]


def without_edges() -> list[Graph]:
    """Graphs of which only positions, species and the cell are given."""
    graphs = plain()
    return [{key: graph[key] for key in ("positions", "species", "cell")} for graph in graphs]


def bare() -> list[tuple[Tensor, Tensor]]:
    """Positions and species of graphs without anything else."""
    graphs = [random_graph(n, seed=n) for n in (10, 17, 8)]
    return [(graph["positions"], graph["species"]) for graph in graphs]


def of_one_species(graph: Graph, species: int, others: int = 0) -> Graph:
    """The same graph with all atoms of one species, but for the first `others`, which are of the next one."""
    new = torch.full_like(graph["species"], species)
    new[:others] += 1
    return {**graph, "species": new}


def with_dihedrals() -> list[Graph]:
    """Graphs with pairs of edges, and pairs of those that share an edge."""
    graphs = plain(cutoff=1.9, angles=True)
    for graph in graphs:
        one, two = graph["angles"]
        left, right = torch.nonzero(two[:, None] == one[None, :], as_tuple=True)
        graph["dihedrals"] = torch.stack([left, right])[:, ::3]
    return graphs


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


def counted() -> list[Any]:
    """Graphs that say how many atoms they have."""
    return [{**g, "num_nodes": len(g["positions"])} for g in plain()]


def with_sizes() -> list[Any]:
    """Graphs that say in a tensor how many atoms each of their structures has."""
    return [{**g, "sizes": torch.tensor([len(g["positions"])])} for g in plain()]


def with_kinds() -> list[Any]:
    """Graphs with atoms of five kinds."""
    return [{**g, "kinds": torch.arange(len(g["positions"])) % 5} for g in plain()]


def as_dataclasses() -> list[Structure]:
    """Graphs as objects."""
    return [Structure(g["positions"], g["species"], Edges(g["edge_index"], g["shifts"]), g["cell"]) for g in plain()]


def as_nested_dicts() -> list[Any]:
    """Graphs as dicts of dicts and lists, beside values that are no tensors."""
    return [
        {
            "nodes": {"positions": g["positions"], "species": g["species"], "tags": ["a", None]},
            "edges": [{"edge_index": g["edge_index"], "shifts": g["shifts"]}],
            "box": (g["cell"], "A"),
        }
        for g in plain()
    ]


def as_pairs() -> list[Any]:
    """Graphs as two positional inputs."""
    return [({k: v for k, v in g.items() if k != "cell"}, g["cell"]) for g in plain()]


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


ADVERSARIES = {
    "sums at receivers": Adversary(ToReceivers),
    "sums at senders": Adversary(ToSenders),
    "sums at both ends": Adversary(ToBothEnds),
    "sums at both ends, half list": Adversary(ToBothEnds, lambda: plain(half=True)),
    "squares of sums": Adversary(Squares),
    "longest edge": Adversary(LongestEdge, few_with_edges),
    "softmax over receivers": Adversary(lambda: SegmentSoftmax("receiver")),
    "softmax over senders": Adversary(lambda: SegmentSoftmax("sender")),
    "softmax over receivers, differentiated through": Adversary(lambda: SegmentSoftmax("receiver", detach=False)),
    "softmax over senders, differentiated through": Adversary(lambda: SegmentSoftmax("sender", detach=False)),
    "segment max at receivers": Adversary(lambda: SegmentMax("receiver")),
    "segment max at senders": Adversary(lambda: SegmentMax("sender")),
    "segment max of a part": Adversary(LargestPart),
    "segment max without self": Adversary(lambda: SegmentMax("sender", include_self=False)),
    "scatter mean": Adversary(ScatterMean),
    "line graphs of line graphs": Adversary(
        LineGraphs, with_dihedrals, frozenset({"atoms", "edges", "angles", "angles2"})
    ),
    "line graph inside": Adversary(AllWithAll, spaces=frozenset({"atoms", "edges", "angles"})),
    "pairs and triples found within": Adversary(
        lambda: PairsAndTriplesWithin(lambda n: int(n)), bare, frozenset({"atoms", "edges", "edges_edges", "angles"})
    ),
    "neighbours looked for within": Adversary(PeriodicSearchWithin, without_edges),
    "weights of a class of their own": Adversary(OwnWeights),
    "edge outputs": Adversary(EdgeOutputs),
    "masks over atoms": Adversary(AtomMasks, spaces=frozenset({"atoms", "edges", "rows", "rows2"})),
    "masks over edges": Adversary(EdgeMasks, spaces=frozenset({"atoms", "edges", "edges2", "bonds"})),
    "masks over elements": Adversary(ElementMasks, spaces=frozenset({"atoms", "edges", "rows"})),
    "masks in a backward": Adversary(MasksInBackward, spaces=frozenset({"atoms", "edges", "bonds"})),
    "mean over a mask": Adversary(MeanOfChosen, spaces=frozenset({"atoms", "edges", "rows"})),
    "masked select": Adversary(MaskedSelect, spaces=frozenset({"atoms", "edges", "bonds"})),
    "computed pointers": Adversary(PointerArithmetic),
    "charge equilibration": Adversary(ChargeEquilibration),
    "global statistics": Adversary(GlobalStatistics),
    "global max": Adversary(GlobalMax),
    "global max, differentiated through": Adversary(lambda: GlobalMax(detach=False)),
    "softmax over all atoms": Adversary(GlobalSoftmax),
    "branch on features": Adversary(BranchOnFeatures),
    "rows within rows": Adversary(RowsWithinRows),
    "same memory": Adversary(SameMemory),
    "species counts": Adversary(SpeciesCounts),
    "species counts read back": Adversary(SpeciesCountsReadBack),
    "batch of four and more": Adversary(Batch, lambda: batches((5, 4, 7, 1))),
    "batch counted by a tensor": Adversary(lambda: BatchCounted(lambda n: n), lambda: counted_batches((5, 6, 4))),
    "batch counted by int": Adversary(lambda: BatchCounted(lambda n: int(n)), lambda: counted_batches((5, 6, 4))),
    "batch counted by an item": Adversary(lambda: BatchCounted(Tensor.item), lambda: counted_batches((5, 6, 4))),
    "batch of two": Adversary(Batch, lambda: batches((2, 2, 2))),
    "cells of a batch of two": Adversary(CellsOfTwo, two_with_cells),
    "batch from offsets": Adversary(BatchFromOffsets, lambda: batches((5, 4, 7), offsets=True)),
    "rows by number": Adversary(RowsByNumber),
    "species table": Adversary(SpeciesTable),
    "overwritten rows": Adversary(Overwrite, with_centers, frozenset({"atoms", "edges", "edges2"})),
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
    "both ends at once": Adversary(EndsAtOnce, lambda: plain(half=True)),
    "three atoms at once": Adversary(Triples, with_triples, frozenset({"atoms", "edges", "edges2", "edges3"})),
    "padding": Adversary(Padding),
    "attention": Adversary(Attention),
    "tensor products": Adversary(TensorProducts),
    "einsum of three operands": Adversary(ThreeOperands),
    "linear algebra": Adversary(LinearAlgebra),
    "layer norm": Adversary(LayerNorm),
    "order within rows": Adversary(OrderWithinRows),
    "sizes in Python": Adversary(PythonSizes),
    "sizes as floats": Adversary(SizesAsFloats),
    "triplets by NumPy": Adversary(
        lambda: TripletsWithin(by_loop=False), lambda: plain(cutoff=2.0), frozenset({"atoms", "edges", "angles"})
    ),
    "triplets by a loop over atoms": Adversary(
        lambda: TripletsWithin(by_loop=True), lambda: plain(cutoff=2.0), frozenset({"atoms", "edges", "angles"})
    ),
    "rows by NumPy": Adversary(NumpyRows),
    "numbers and features by NumPy": Adversary(NumpyNumbers),
    "tensors kept": Adversary(Keeping),
    "number of atoms in the graph": Adversary(CountedAtoms, counted),
    "number of atoms from the edges": Adversary(AtomsOfEdges),
    "number of kinds": Adversary(CountedKinds, with_kinds),
    "number of atoms summed": Adversary(SummedAtoms, with_sizes),
    "neighbour matrix": Adversary(NeighbourMatrix, as_matrices, frozenset({"atoms"})),
    "complex features": Adversary(ComplexFeatures),
    "sorted edges": Adversary(Sorted, spaces=frozenset({"atoms", "edges", "rows"})),
    "species compressed": Adversary(Compressed),
    "edges cut inside": Adversary(CutInForward, spaces=frozenset({"atoms", "edges", "edges2", "rows"})),
    "transformed functions": Adversary(Transformed),
    "functional gradients": Adversary(FunctionalGradients),
    "detached": Adversary(Detached),
    "without gradients": Adversary(WithoutGradients),
    "passed through": Adversary(PassThrough),
    "dataclass and named tuple": Adversary(FromDataclass, as_dataclasses),
    "nested dicts": Adversary(FromNestedDicts, as_nested_dicts),
    "two inputs": Adversary(TwoInputs, as_pairs),
}
