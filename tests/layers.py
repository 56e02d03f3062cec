"""Potentials made of the layers that networks are made of, each kind in one model; see `adversaries`."""

from __future__ import annotations

from typing import Any

import torch
from adversaries import Adversary, F, Toy, add_to
from torch import Tensor, nn
from torch.nn import functional
from toys import Graph


class Activations(Toy):
    """Every activation of torch that works element by element and can be differentiated twice."""

    def more(self) -> None:
        self.activations = nn.ModuleList([
            nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.Hardshrink(0.1), nn.Hardswish(),
            nn.Hardtanh(), nn.LeakyReLU(), nn.LogSigmoid(), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.SELU(),
            nn.SiLU(), nn.Sigmoid(), nn.Softplus(), nn.Softshrink(0.1), nn.Softsign(), nn.Tanhshrink(),
            nn.Threshold(0.1, 0.0), nn.GLU(),
        ])  # fmt: skip

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        *single, gated = self.activations
        found = [f(h) for f in single] + [gated(torch.cat([h, 2 * h], -1)), functional.rrelu(h)]
        return torch.stack(found).sum(0)


class Cells(Toy):
    """Recurrent cells that update an atom from its message, and a bilinear layer."""

    def more(self) -> None:
        self.gru, self.lstm, self.bilinear = nn.GRUCell(F, F), nn.LSTMCell(F, F), nn.Bilinear(F, F, F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        cell = torch.zeros_like(h)
        for _ in range(2):
            h = self.gru(add_to(w * h[sender], receiver, h), h)
            h, cell = self.lstm(add_to(w * h[sender], receiver, h), (h, cell))
        return torch.tanh(self.bilinear(h, cell))


class Norms(Toy):
    """Norms with known statistics and within rows."""

    def more(self) -> None:
        self.group, self.root = nn.GroupNorm(2, F), nn.RMSNorm(F)
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, F))
        self.register_buffer("variance", torch.linspace(0.5, 2.0, F))

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        h = self.group(h) + self.root(h) + functional.batch_norm(h, self.mean, self.variance)
        return torch.tanh(self.mix(functional.normalize(h, dim=-1)))


class HeadsWithinRows(Toy):
    """Attention, distances and similarities among the parts of each atom's features."""

    def more(self) -> None:
        self.attention = nn.MultiheadAttention(F // 2, 1, batch_first=True)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        parts = h.reshape(-1, 2, F // 2)
        mixed, _ = self.attention(parts, parts, parts)
        heads = parts.unsqueeze(1)
        attended = functional.scaled_dot_product_attention(heads, heads, heads + 1).squeeze(1)
        far = torch.cdist(parts, attended + 1).sum((1, 2))
        near = functional.cosine_similarity(h, h + 1, dim=-1) + functional.pairwise_distance(h, h + 1)
        return (mixed + attended).reshape(-1, F) * (far + near).unsqueeze(-1) + torch.kron(h[:, :2], h.new_ones(1, 3))


class LossesInside(Toy):
    """Regularisers: means over all atoms that scale what each atom gets."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        aim = torch.full_like(h, 0.3)
        losses = [functional.mse_loss(h, aim), functional.huber_loss(h, aim), functional.smooth_l1_loss(h, aim)]
        each = functional.mse_loss(h, aim, reduction="none")
        return h * torch.stack(losses).sum() + each


class PlacesWithinRows(Toy):
    """Features found by order, by place and among bounds."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        bounds = torch.linspace(-1, 1, 5, dtype=h.dtype)
        bins: Any = torch.bucketize(h.detach(), bounds) + torch.searchsorted(bounds, h.detach(), right=True)
        middle = h.median(-1, keepdim=True).values + h.kthvalue(2, -1, keepdim=True).values
        one = torch.tensor([1])
        written = h.index_fill(1, one, 0.5) + h.index_copy(1, one, 2 * h[:, :1])
        mask = h.new_zeros(h.shape[0], 2, F)
        mask[torch.arange(len(h)), :, graph["species"]] = 1
        order = torch.arange(F, dtype=h.dtype)[None].repeat(len(h), 1)
        return written * middle + 0.1 * h * bins + torch.polar(h.abs() + 1, h).real + mask.sum(1) * torch.cos(order * h)


LAYERS = {
    "activations": Adversary(Activations),
    "recurrent cells": Adversary(Cells),
    "norms": Adversary(Norms),
    "heads within rows": Adversary(HeadsWithinRows, untrainable="torch cannot differentiate its fused attention twice"),
    "losses inside": Adversary(LossesInside),
    "places within rows": Adversary(PlacesWithinRows),
}
