"""Potentials with places for neighbours: matrices, lists of their elements, tokens; and tables for what is pointed at.

See `adversaries`.
"""

from __future__ import annotations

import torch
from adversaries import Adversary, F, Toy, add_to, as_matrices, envelope, gaussians, plain
from torch import Tensor, nn
from toys import Graph, Result


class ElementsOfAMatrix(Toy):
    """Edges are the elements of a matrix of neighbours, one row after another, some of them for nothing."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.width = width
        """How many columns are used, if not all."""

    def forward(self, graph: Graph) -> Result:
        neighbours, there, shifts = graph["neighbours"], graph["there"], graph["shifts"]
        n, width = neighbours.shape
        if self.width is not None:
            filled = torch.zeros(n, self.width, dtype=torch.int64)
            neighbours, there = (torch.cat([x, filled.to(x.dtype)], 1)[:, : self.width] for x in (neighbours, there))
            shifts = torch.cat([shifts, filled[..., None].expand(-1, -1, 3).to(shifts.dtype)], 1)[:, : self.width]
            width = self.width
        receiver = torch.arange(n)[:, None].expand(n, width).reshape(-1)
        edges = {**graph, "neighbours": neighbours, "edge_index": torch.stack([neighbours.reshape(-1), receiver])}
        return super().forward({**edges, "shifts": shifts.reshape(-1, 3), "there": there.reshape(-1)})

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        sender, receiver = graph["edge_index"]
        there = graph["there"]
        squares = vectors.square().sum(-1)
        lengths = torch.where(there, squares, torch.ones_like(squares)).sqrt()
        w = self.radial(gaussians(lengths)) * there[:, None]
        h = self.embedding(graph["species"])
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))
        return self.readout(h).sum(), {"pairs": w.sum(1).reshape(graph["neighbours"].shape[0], -1)}


class Tokens(Toy):
    """A transformer over the edges of each atom and one token of its own, as PET does: edges are put into a grid.

    Messages go the other way round: from the place of the reverse edge, in the grid as one list of places.
    """

    def more(self) -> None:
        self.tokens, self.back = nn.Linear(F, 3 * F), nn.Linear(F, F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n, n_edges = len(h), len(receiver)
        counts = torch.zeros(n, dtype=torch.int64).scatter_add_(0, receiver, torch.ones_like(receiver))
        width = int(counts.max())
        order = torch.argsort(receiver, stable=True)
        place = torch.empty_like(receiver)
        place[order] = torch.arange(n_edges) - (torch.cumsum(counts, 0) - counts)[receiver[order]]
        grid = torch.zeros(n * width, dtype=torch.int64)
        grid[receiver * width + place] = torch.arange(n_edges)
        grid = grid.view(n, width)
        there = torch.arange(width).view(1, -1).expand(n, -1) < counts.view(-1, 1)
        image = (graph["shifts"].round().long() + 4) @ torch.tensor([81, 9, 1])
        one = torch.argsort((receiver * n + sender) * 729 + image)
        other = torch.argsort((sender * n + receiver) * 729 + 728 - image)
        reverse = torch.empty_like(receiver)
        reverse[one] = other
        source = torch.where(there, receiver[reverse[grid]] * width + place[reverse[grid]], 0)
        messages = w[grid] * h[:, None]
        shown = torch.cat([torch.ones(n, 1, dtype=torch.bool), there], 1)
        for _ in range(2):
            x = torch.cat([h[:, None], messages], 1)
            query, key, value = self.tokens(x).reshape(n, width + 1, 3, F).unbind(2)
            scores = (query @ key.transpose(1, 2)).masked_fill(~shown[:, None], -1e9)
            x = x + scores.softmax(-1) @ value
            h, sent = torch.tanh(x[:, 0]), self.back(x[:, 1:]) * there[..., None]
            messages = messages + sent.reshape(n * width, F)[source] * w[grid] * there[..., None]
        return torch.tanh(h + (messages * there[..., None]).sum(1))


class UpToTheLargest(Toy):
    """Softmax over the edges of an atom, in tables of as many rows as the largest row number says."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        message = w * h[sender]
        for segment in (receiver, sender, receiver):
            message = message * _softmax(message, segment, lengths)
        return torch.tanh(self.mix(h + add_to(message, receiver, h)))


def _softmax(x: Tensor, segment: Tensor, lengths: Tensor) -> Tensor:
    rows = int(segment.max()) + 1
    index = segment[:, None].expand(-1, x.shape[1])
    top = torch.full((rows, x.shape[1]), float("-inf"), dtype=x.dtype)
    top = top.scatter_reduce(0, index, x.detach(), "amax", include_self=False)
    weight = (x - top[segment]).exp() * envelope(lengths)[:, None]
    total = torch.zeros(rows, x.shape[1], dtype=x.dtype).scatter_reduce(0, index, weight, "sum", include_self=False)
    return weight / (total[segment] + 1e-3)


class AsksWhetherTheSame(Toy):
    """Branches on whether tensors are the same or close, and on whether sizes are."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        cell = graph["cell"]
        if len({h.shape[0], graph["positions"].shape[0]}) > 1 or len({w.shape[0], receiver.shape[0]}) > 1:
            raise ValueError("sizes differ")
        if torch.allclose(cell, torch.zeros_like(cell)) or cell.allclose(cell + 1) or sender.equal(receiver):
            return h
        if torch.equal(graph["species"], graph["species"] + 1):
            return h
        return torch.tanh(self.mix(h + add_to(w * h[sender], receiver, h)))


class Statistics(Toy):
    """Mean and variance at once, slopes, and blocks along a diagonal."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        h = h + add_to(w * h[sender], receiver, h)
        variance, mean = torch.var_mean(h, dim=-1, unbiased=False, keepdim=True)
        deviation, other = torch.std_mean(h**2, 1)
        (slope,) = torch.gradient(h, dim=-1)
        steep = torch.gradient(h, spacing=0.5, dim=[1], edge_order=2)[0]
        cells = torch.block_diag(graph["cell"], graph["cell"] * 2).sum()
        image = torch.block_diag(graph["shifts"]) @ graph["cell"]
        h = h + (slope + steep) * variance + mean + (deviation * other)[:, None] + 0.01 * cells
        return torch.tanh(self.mix(h)) + add_to(w * image.sum(1, keepdim=True), receiver, h)


class RowForNothing(Toy):
    """Some edges point at a row that is joined to the atoms, by its number or by -1; sums go there too."""

    def __init__(self, comes_first: bool) -> None:
        super().__init__()
        self.comes_first = comes_first

    def join(self, rows: Tensor, one: Tensor, dim: int = 0) -> Tensor:
        return torch.cat([one, rows] if self.comes_first else [rows, one], dim)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n = len(h)
        there = (sender + 2 * receiver) % 5 > 0
        where = torch.where(there, sender + 1, 0) if self.comes_first else torch.where(there, sender, n)
        for _ in range(2):
            by_end = torch.where(there, where, -(n + 1) if self.comes_first else -1)
            near = self.join(h, h[-1:] + 0.5)[by_end] + self.join(h**2, torch.zeros(1, F, dtype=h.dtype))[where]
            summed = near.new_zeros(n + 1, F).index_add(0, where, w * near)
            summed, spare = (summed[1:], summed[:1]) if self.comes_first else (summed[:n], summed[n:])
            matrix = self.join(h[None], torch.ones(1, 1, F, dtype=h.dtype), 1)
            first = torch.gather(matrix, 1, where[None, :, None].expand(-1, -1, F))[0]
            h = torch.tanh(self.mix(h + summed + add_to(w * first * there[:, None], receiver, h) + 0.01 * spare))
        return h


class WithImages(Toy):
    """Atoms, then images of some of them, in one list; the first rows of it are the atoms."""

    def forward(self, graph: Graph) -> Result:
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        positions = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype) + (strain + strain.T) / 2
        sender, receiver = graph["edge_index"]
        mapping, images = graph["mapping"], graph["images"]
        n = len(graph["species"])
        here = positions @ deformation
        every = here[mapping] + images @ (graph["cell"] @ deformation)
        vectors = every[sender] - every[:n][receiver]
        w = self.radial(gaussians(vectors.norm(dim=-1)))
        h = self.embedding(graph["species"])
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[mapping][sender], receiver, h)))
        energy = self.readout(h).sum()
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain], create_graph=self.training)
        return {"energy": energy, "forces": -from_positions, "virial": from_strain}


def with_images() -> list[Graph]:
    """Graphs whose edges start at atoms or at images of atoms, which come after the atoms."""
    graphs = []
    for graph in plain():
        sender, receiver = graph["edge_index"]
        n, away = len(graph["positions"]), (graph["shifts"] != 0).any(1)
        atom_and_image = torch.cat([sender[:, None].double(), graph["shifts"]], 1)
        kinds, which = torch.unique(atom_and_image[away], dim=0, return_inverse=True)
        sender = sender.clone()
        sender[away] = n + which
        kept = {name: graph[name] for name in ("positions", "species", "cell")}
        mapping = torch.cat([torch.arange(n), kinds[:, 0].long()])
        images = torch.cat([torch.zeros(n, 3, dtype=torch.float64), kinds[:, 1:]])
        graphs.append({**kept, "edge_index": torch.stack([sender, receiver]), "mapping": mapping, "images": images})
    return graphs


class EachTwice(Toy):
    """Each edge twice in a row, once for each direction."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        ends = graph["edge_index"]
        w = torch.cat([w[:, None], -0.5 * w[:, None]], 1).reshape(-1, w.shape[1])
        to, of = torch.stack([ends.flip(0), ends], 2).flatten(1)
        for _ in range(2):
            h = torch.tanh(self.mix(h + add_to(w * h[of], to, h)))
        return h


def not_square() -> list[Graph]:
    """Graphs with matrices, of which the first has another number of columns than of rows."""
    return sorted(as_matrices(), key=lambda graph: graph["there"].shape[0] == graph["there"].shape[1])


def some_alone() -> list[Graph]:
    """Graphs in which nothing points at the last atom of some, and at several of others."""
    return [_without(graph, alone) for graph, alone in zip(plain(), (0, 1, 3), strict=True)]


def _without(graph: Graph, alone: int) -> Graph:
    kept = (graph["edge_index"] < len(graph["positions"]) - alone).all(0)
    return {**graph, "edge_index": graph["edge_index"][:, kept].contiguous(), "shifts": graph["shifts"][kept]}


_MATRIX = frozenset({"atoms", "edges"})
"""Of rows of a matrix, nothing says that they are atoms."""

GRIDS = {
    "elements of a matrix of neighbours": Adversary(ElementsOfAMatrix, not_square, _MATRIX),
    "elements of a matrix of six": Adversary(lambda: ElementsOfAMatrix(6), as_matrices, _MATRIX),
    "each edge twice in a row": Adversary(EachTwice),
    "a row for nothing, last": Adversary(lambda: RowForNothing(False)),
    "a row for nothing, first": Adversary(lambda: RowForNothing(True)),
    "atoms, then images": Adversary(WithImages, with_images, frozenset({"atoms", "rows", "rows2"})),
    "tokens": Adversary(Tokens, spaces=frozenset({"atoms", "edges", "angles"})),
    "up to the largest row": Adversary(UpToTheLargest),
    "up to the largest row, some alone": Adversary(UpToTheLargest, some_alone),
    "whether the same": Adversary(AsksWhetherTheSame),
    "statistics": Adversary(Statistics),
}
