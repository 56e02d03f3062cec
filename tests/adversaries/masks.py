"""Rows and elements that are chosen by a condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from toys import CUTOFF, Graph, envelope

from .toy import Adversary, F, Toy, add_to


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


MASKS = {
    "masks over atoms": Adversary(AtomMasks, spaces=frozenset({"atoms", "edges", "rows", "rows2"})),
    "masks over edges": Adversary(EdgeMasks, spaces=frozenset({"atoms", "edges", "edges2", "bonds"})),
    "masks over elements": Adversary(ElementMasks, spaces=frozenset({"atoms", "edges", "rows"})),
    "masks in a backward": Adversary(MasksInBackward, spaces=frozenset({"atoms", "edges", "bonds"})),
    "mean over a mask": Adversary(MeanOfChosen, spaces=frozenset({"atoms", "edges", "rows"})),
    "masked select": Adversary(MaskedSelect, spaces=frozenset({"atoms", "edges", "bonds"})),
    "edges cut inside": Adversary(CutInForward, spaces=frozenset({"atoms", "edges", "edges2", "rows"})),
}
