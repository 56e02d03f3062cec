"""Algebra within the rows of atoms and edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import Graph, envelope

from .toy import Adversary, F, Toy, add_to


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


WITHIN_ROWS = {
    "attention": Adversary(Attention),
    "tensor products": Adversary(TensorProducts),
    "einsum of three operands": Adversary(ThreeOperands),
    "linear algebra": Adversary(LinearAlgebra),
    "layer norm": Adversary(LayerNorm),
    "order within rows": Adversary(OrderWithinRows),
    "complex features": Adversary(ComplexFeatures),
}
