"""Gradients, memory, weights, inputs and results in other forms than usual."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import CUTOFF, Graph, Result, envelope, gaussians

from .sums import ToReceivers
from .toy import Adversary, F, Toy, add_to, plain


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


class SameMemory(ToReceivers):
    """Asks by their addresses whether two tensors are one."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        known = {tensor.data_ptr(): name for name, tensor in graph.items()}
        same = known[graph["edge_index"].view(-1).data_ptr()] == "edge_index" and vectors.data_ptr() != w.data_ptr()
        return super().update(graph, h if same else 2 * h, w, vectors, lengths)


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


FORMS = {
    "weights of a class of their own": Adversary(OwnWeights),
    "edge outputs": Adversary(EdgeOutputs),
    "same memory": Adversary(SameMemory),
    "tensors kept": Adversary(Keeping),
    "transformed functions": Adversary(Transformed),
    "functional gradients": Adversary(FunctionalGradients),
    "detached": Adversary(Detached),
    "without gradients": Adversary(WithoutGradients),
    "passed through": Adversary(PassThrough),
    "dataclass and named tuple": Adversary(FromDataclass, as_dataclasses),
    "nested dicts": Adversary(FromNestedDicts, as_nested_dicts),
    "two inputs": Adversary(TwoInputs, as_pairs),
}
