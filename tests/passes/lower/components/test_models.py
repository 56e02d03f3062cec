"""Compiled models whose regions are kernels are the stock models, in results and in gradients taken outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn
from toys import Graph, Result, gaussians, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld
from distcompile.passes.lower import lower
from distcompile.runtime.execution.kernels import Kernel
from distcompile.runtime.execution.tiles import Region

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

OPTIONS: dict[str, dict[str, Any]] = {"Eam": {"half": True}, "ThreeBody": {"angles": True}}
NAMES = ("Pair", "Gnn", "Eam", "ThreeBody")


def compiled(model: nn.Module, graph: Graph, ranks: int) -> DistributedModel:
    """A model with kernels."""
    return distcompile.compile(model, graph, world=LocalWorld(ranks), lowering="kernels", validate=False)


def check(found: Result, expected: Result) -> None:
    """Results are the same to 1e-9."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def check_all_are_kernels(model: DistributedModel) -> None:
    """No region was left to another code generator."""
    tiled = model.program.tiled
    assert tiled is not None
    regions = [m for m in tiled.children() if isinstance(m, Region)]
    assert len(regions) >= 2
    assert all(isinstance(r.compiled, Kernel) for r in regions)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_toys_are_stock(name: str, ranks: int) -> None:
    """On the example, on larger and smaller graphs; where atoms have no edges, and where ranks have no atoms."""
    model, options = getattr(toys, name)().eval(), OPTIONS.get(name, {})
    example = random_graph(14, 1, **options)
    run = compiled(model, example, ranks)
    check_all_are_kernels(run)
    graphs = {
        "the example": example,
        "another": random_graph(37, 2, **options),
        "no edges": random_graph(9, 3, volume=1000.0, **options),
        "few edges": random_graph(9, 4, volume=60.0, **options),
        "two atoms": random_graph(2, 5, **options),
        "one atom": random_graph(1, 6, **options),
        "one atom alone": random_graph(1, 7, volume=1000.0, **options),
        "no atoms": random_graph(0, 8, **options),
    }
    assert graphs["no edges"]["edge_index"].shape[1] == 0 and graphs["one atom"]["edge_index"].shape[1] > 0
    for graph in graphs.values():
        check(run(graph), model(graph))


@pytest.mark.parametrize("ranks", [1, 2])
def test_threads_change_nothing(ranks: int) -> None:
    """Enough rows for several threads, whose sums are in another order."""
    model = toys.Gnn().eval()
    run, graph = compiled(model, random_graph(14, 1), ranks), random_graph(700, 2)
    expected, before = model(graph), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            check(run(graph), expected)
    finally:
        torch.set_num_threads(before)


class Energies(nn.Module):
    """Energies of atoms by weights, which a caller differentiates; in float32 or float64."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.gnn = toys.Gnn().to(dtype)

    def forward(self, graph: Graph) -> Result:
        sender, receiver = graph["edge_index"]
        x = graph["positions"]
        vectors = x[sender] + graph["shifts"] @ graph["cell"] - x[receiver]
        energy, energies = self.gnn.energy(graph, vectors, vectors.norm(dim=-1))
        assert energies is not None
        return {"energy": energy, "energies": energies}


def gradients(call: Any, model: nn.Module, graph: Graph) -> list[Tensor]:
    """Of all results, weighted differently, by what is given and by weights."""
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in graph.items()}
    result = call(given)
    loss = result["energy"].sin() + (result["energies"] ** 2 * torch.arange(len(graph["species"]))).sum()
    return list(torch.autograd.grad(loss, [given[k] for k in ("positions", "cell", "shifts")] + [*model.parameters()]))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_from_outside(ranks: int) -> None:
    """By positions, the cell, shifts and every weight."""
    model = Energies().eval()
    run = compiled(model, random_graph(14, 1), ranks)
    for graph in (random_graph(14, 1), random_graph(23, 2), random_graph(9, 3, volume=60.0)):
        expected = gradients(model, model, graph)
        assert all(bool(e.abs().max() > 1e-6) for e in expected[:2])
        for found, value in zip(gradients(run, model, graph), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)


def test_weights_may_change() -> None:
    """They are read where they are, at every call."""
    model = Energies().eval()
    graph = random_graph(14, 1)
    run = compiled(model, graph, 2)
    before = run(graph)["energy"].item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.8)
        check(run(graph), model(graph))
        assert abs(run(graph)["energy"].item() - before) > 1e-3


@pytest.mark.parametrize("ranks", [1, 3])
def test_float32(ranks: int) -> None:
    """Sixteen rows side by side."""
    model = Energies(torch.float32).eval()

    def single(graph: Graph) -> Graph:
        return {k: v.float() if v.is_floating_point() else v for k, v in graph.items()}

    run = compiled(model, single(random_graph(14, 1)), ranks)
    check_all_are_kernels(run)
    for graph in map(single, (random_graph(14, 1), random_graph(37, 2), random_graph(1, 3))):
        found, expected = run(graph), model(graph)
        for name, value in expected.items():
            assert found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


class Masks(toys.Potential):
    """Neighbours that are chosen by masks, counted, and added to a graph that all atoms belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.charges = nn.Embedding(toys.N_SPECIES, 6)
        self.register_buffer("active", torch.tensor([True, False, True]))
        self.register_buffer("even", torch.tensor([True, False, True, False, True, False]))
        toys.seeded(self)

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        sender, receiver = graph["edge_index"]
        near, active = lengths < 2.2, self.active[graph["species"]]
        both = active[sender] * active[receiver]
        chosen = (near & ~both) | ((graph["species"][sender] == 1) ^ True)
        basis = torch.where(self.even, gaussians(lengths) * near[:, None], 0.5 * gaussians(lengths))
        pairs = (basis * self.charges(graph["species"])[sender]).masked_fill(~chosen[:, None], 0.0).sum(-1)
        count = torch.zeros_like(graph["species"]).index_add(0, receiver, chosen.long())
        energies = torch.zeros_like(graph["positions"][:, 0]).index_add(0, receiver, pairs) / count.clamp(min=1)
        batch = torch.zeros_like(graph["species"])
        total = torch.zeros(1, dtype=energies.dtype).index_add(0, batch, energies * (~active).to(energies.dtype))
        return total.sum() + energies.sum(), energies


@pytest.mark.parametrize("ranks", [1, 2])
def test_masks_and_counts(ranks: int) -> None:
    """Truth values are read, negated, multiplied, counted, and made numbers."""
    model = Masks().eval()
    run = compiled(model, random_graph(14, 1), ranks)
    for seed, n in enumerate((14, 33, 5)):
        graph = random_graph(n, seed)
        check(run(graph), model(graph))
