"""Random models: what potentials are made of in any order, with or without one operator that no rule divides.

    python tests/random_programs.py 1000            a thousand of them, from seed 0 on; says what is wrong or refused

A model holds features of atoms and of edges and changes them step by step. It takes forces and stress itself, and in
training mode everything can be differentiated again. Values stay near one, so that rounding stays rounding.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from adversaries import F, Toy, add_to
from torch import Tensor
from toys import Graph, gaussians, random_graph

import distcompile
from distcompile import DistcompileError, LocalWorld

Features = tuple[Tensor, Tensor]
"""Of atoms [n_atoms, F], and of edges [n_edges, F]."""
Step = Callable[[Toy, Graph, Tensor, Tensor], Features]


def _atoms(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda model, graph, h, w: (function(h), w)


def _edges(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda model, graph, h, w: (h, function(w))


def _to(end: int) -> Step:
    return lambda m, g, h, w: (torch.tanh(h + 0.2 * add_to(w, g["edge_index"][end], h)), w)


def _softmax(model: Toy, graph: Graph, h: Tensor, w: Tensor) -> Features:
    receiver = graph["edge_index"][1]
    weights = torch.exp(torch.tanh(w))
    return h, w * weights / (1e-3 + add_to(weights, receiver, h))[receiver]


def _overwritten(model: Toy, graph: Graph, h: Tensor, w: Tensor) -> Features:
    found = h.clone()
    found[graph["species"] == 1] = torch.tanh(h[graph["species"] == 1] * 2)
    return found, w


ROW_LOCAL: dict[str, Step] = {
    "mix": lambda m, g, h, w: (torch.tanh(m.mix(h)), w),
    "to receivers": _to(1),
    "to senders": _to(0),
    "from senders": lambda m, g, h, w: (h, torch.tanh(w * h[g["edge_index"][0]])),
    "from receivers": lambda m, g, h, w: (h, torch.tanh(w - h[g["edge_index"][1]])),
    "from both": lambda m, g, h, w: (h, w * (h[g["edge_index"][0]] * h[g["edge_index"][1]]).sum(1, True).sin()),
    "squares": _atoms(lambda h: h * h - 0.1 * h),
    "sines": _edges(lambda w: torch.sin(2 * w)),
    "softmax": _softmax,
    "by species": lambda m, g, h, w: (h * m.embedding(g["species"]).tanh(), w),
    "kinds of edges": lambda m, g, h, w: (h, torch.where((g["species"][g["edge_index"][0]] == 0)[:, None], w, 0.5 * w)),
    "overwritten": _overwritten,
    "mean of atoms": _atoms(lambda h: h - h.sum(0) / (1 + h.shape[0])),
    "norm of all": _edges(lambda w: w / (1 + (w * w).sum()).sqrt()),
    "parts": _atoms(lambda h: torch.cat([h[:, 3:], h[:, :3].tanh()], 1)),
    "norm of rows": _edges(lambda w: torch.nn.functional.layer_norm(w + 0.1, (F,)).tanh()),
    "detached": _atoms(lambda h: h * h.detach().cos()),
}
UNDIVIDABLE: dict[str, Step] = {
    "running sum of atoms": _atoms(lambda h: torch.tanh(h.cumsum(0) / (1 + h.shape[0]))),
    "running sum of edges": _edges(lambda w: torch.tanh(w.cumsum(0) / (1 + w.shape[0]))),
    "sorted atoms": _atoms(lambda h: h.sort(0).values),
    "sorted edges": _edges(lambda w: w.sort(0, descending=True).values),
    "flipped": _atoms(lambda h: h * h.flip(0).cos()),
    "rolled": _edges(lambda w: w * w.roll(1, 0).cos()),
    "attention": _atoms(lambda h: torch.softmax(h @ h.T, -1) @ h),
    "all pairs": _atoms(lambda h: (h[:, None] - h[None]).tanh().sum(1) / (1 + h.shape[0])),
    "equations": _atoms(lambda h: torch.linalg.solve(h @ h.T / F + 3 * torch.eye(h.shape[0], dtype=h.dtype), h)),
    "every second": _atoms(lambda h: h * (1 + h[::2].sum(0)).cos()),
    "two halves": _edges(lambda w: torch.cat([w[w.shape[0] // 2 :], w[: w.shape[0] // 2]])),
    "in a row": _atoms(lambda h: h.reshape(-1).cumsum(0).reshape(h.shape).sin()),
    "matrix of edges": lambda m, g, h, w: (
        torch.tanh(
            h.new_zeros(h.shape[0], h.shape[0]).index_put((g["edge_index"][1], g["edge_index"][0]), w[:, 0], True) @ h
        ),
        w,
    ),
    "product of all": _atoms(lambda h: h * (1 + 0.1 * h).prod(0)),
    "spread": _edges(lambda w: w / (1 + w.norm(p=1))),
}


class Random(Toy):
    """A model of given steps."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h, w = self.embedding(graph["species"]).tanh(), self.radial(gaussians(lengths))
        w = w * vectors.sum(1, True).sin()
        for step in self.steps:
            h, w = step(self, graph, h, w)
        h = h + 0.1 * add_to(w, graph["edge_index"][1], h)
        energies = self.readout(torch.tanh(h)).squeeze(-1)
        return energies.sum(), {"energies": energies, "edges": w[:, :2]}


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model, the graph that it is compiled on and others, and numbers of ranks."""

    names: tuple[str, ...]
    graphs: tuple[Graph, ...]
    ranks: int

    def model(self) -> Random:
        return Random([(ROW_LOCAL | UNDIVIDABLE)[name] for name in self.names])


def system(choose: random.Random) -> Graph:
    """0 to 40 atoms in a box, periodic in three directions, in two, or in none; sometimes nobody has neighbours."""
    graph = random_graph(
        choose.choice([0, 1, 2, 3, *range(4, 41)]), choose.randrange(10**6), volume=choose.choice([8, 8, 8, 20, 1e4])
    )
    free = choose.choice([0, 0, 1, 3])
    kept = (graph["shifts"][:, 3 - free :] == 0).all(1)
    return {**graph, "edge_index": graph["edge_index"][:, kept], "shifts": graph["shifts"][kept]}


def case(seed: int) -> Case:
    """The case of a seed: every second one has an operator that no rule divides."""
    choose = random.Random(seed)
    names = choose.choices(list(ROW_LOCAL), k=choose.randint(2, 7))
    if seed % 2:
        names.insert(choose.randint(0, len(names)), choose.choice(list(UNDIVIDABLE)))
    return Case(tuple(names), tuple(system(choose) for _ in range(3)), choose.randint(1, 4))


def results(model: Any, graph: Graph, parameters: list[Tensor]) -> dict[str, Tensor]:
    """All outputs, and gradients taken outside: by positions and weights, of a loss on energy and forces."""
    x = graph["positions"].clone().requires_grad_()
    found = model({**graph, "positions": x})
    loss = (found["forces"] ** 2).sum() + found["energy"].sin() + found["edges"].sum() + found["stress"].sum()
    gradients = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
    named = {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
    return {name: value.detach() for name, value in (found | named).items()}


def differences(given: Case) -> Iterator[str]:
    """What is not the stock model's, to 1e-9 of the largest value; of graphs that the stock model can evaluate.

    Raises:
        DistcompileError: something is refused.
    """
    model = given.model().train()
    parameters: list[Any] = list(model.parameters())
    compiled = None
    for i, graph in enumerate(given.graphs):
        try:
            expected = results(model, graph, parameters)
        except (IndexError, RuntimeError):
            continue
        if compiled is None:
            compiled = distcompile.compile(model, graph, world=LocalWorld(given.ranks), validate=False)
        found = results(compiled, graph, parameters)
        for name in expected.keys() | found.keys():
            a, b = found.get(name, torch.zeros(())), expected.get(name, torch.zeros(()))
            scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
            if a.shape != b.shape and name in found and name in expected:
                yield f"graph {i}: {name} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
            elif not bool((a - b).abs().le(1e-9 * scale).all()) and not (a.isnan() == b.isnan()).all():
                yield f"graph {i}: {name} is not a number in one of both"
            elif bool((a - b).abs().gt(1e-9 * scale).any()):
                yield f"graph {i}: {name} is off by {float((a - b).abs().max()):.1e} of {scale:.1e}"
    if compiled is not None and compiled.captures > 3:
        yield f"{compiled.captures} programs for {len(given.graphs)} graphs"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    wrong, refused, number = 0, 0, int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for seed in range(first, first + number):
        chosen = case(seed)
        try:
            problems = list(differences(chosen))
        except DistcompileError as error:
            refused, problems = refused + 1, [f"refused: {type(error).__name__}: {str(error).splitlines()[0]}"]
        except Exception as error:
            wrong, problems = wrong + 1, [f"raised {type(error).__name__}: {str(error)[:200]}"]
        else:
            wrong += bool(problems)
        for problem in problems:
            sizes = [len(g["positions"]) for g in chosen.graphs]
            print(f"seed {seed}, {chosen.ranks} ranks, {sizes} atoms, {chosen.names}: {problem}", flush=True)
    print(f"{number} random models: {wrong} wrong, {refused} refused")
