"""Numbers that all atoms make together."""

from __future__ import annotations

import torch
from torch import Tensor
from toys import N_SPECIES, Graph, envelope

from .toy import Adversary, F, Toy, add_to


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


def of_one_species(graph: Graph, species: int, others: int = 0) -> Graph:
    """The same graph with all atoms of one species, but for the first `others`, which are of the next one."""
    new = torch.full_like(graph["species"], species)
    new[:others] += 1
    return {**graph, "species": new}


WHOLES = {
    "charge equilibration": Adversary(ChargeEquilibration),
    "global statistics": Adversary(GlobalStatistics),
    "global max": Adversary(GlobalMax),
    "global max, differentiated through": Adversary(lambda: GlobalMax(detach=False)),
    "softmax over all atoms": Adversary(GlobalSoftmax),
    "branch on features": Adversary(BranchOnFeatures),
    "species counts": Adversary(SpeciesCounts),
    "species counts read back": Adversary(SpeciesCountsReadBack),
}
