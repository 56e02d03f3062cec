"""Sums and largest values over edges, at either end."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import N_SPECIES, Graph, Result, envelope

from .toy import Adversary, F, Toy, add_to, plain


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


def few_with_edges() -> list[Graph]:
    """Graphs, of which in the last one only two atoms have edges."""
    *graphs, last = plain()
    kept = (last["edge_index"] < 2).all(0)
    return [*graphs, {**last, "edge_index": last["edge_index"][:, kept].contiguous(), "shifts": last["shifts"][kept]}]


SUMS = {
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
}
