"""One feature of a model at a time: on any number of ranks exactly what the stock model gives, gradients included."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from adversaries import (
    ADVERSARIES,
    Adversary,
    AtomMasks,
    Batch,
    EdgeMasks,
    SegmentSoftmax,
    ToReceivers,
    batches,
    of_one_species,
    plain,
)
from distcompile.runtime.halo import halo_reduce
from distcompile.runtime.tiles import Region
from torch import Tensor, nn
from toys import CUTOFF, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld
from distcompile.testing import check_model
from distcompile.tree import flatten


def cases(training: bool = False) -> list[Any]:
    """The names of all adversaries, those that fail marked so."""
    found = []
    for name, adversary in ADVERSARIES.items():
        reason = adversary.missing or (adversary.untrainable if training else "")
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        found.append(pytest.param(name, marks=marks, id=name.replace(" ", "-")))
    return found


@functools.cache
def compiled(name: str) -> tuple[nn.Module, list[Any], DistributedModel]:
    """A model in training mode, its graphs, and its program on one rank."""
    adversary: Adversary = ADVERSARIES[name]
    model, graphs = adversary.model().train(), adversary.graphs()
    return model, graphs, distcompile.compile(model, graphs[0], world=LocalWorld(1), validate=False)


def call(model: Any, graph: Any) -> list[Tensor]:
    """Every tensor of a model's result."""
    result = model(*graph) if isinstance(graph, tuple) else model(graph)
    return [leaf.tensor for leaf in flatten(result)[0]]


@pytest.mark.parametrize("name", cases())
def test_every_output_is_exact_on_any_number_of_ranks(name: str) -> None:
    """Graphs of three sizes or more are served by one program, on 1 to 5 ranks, to 1e-12 in every output."""
    adversary = ADVERSARIES[name]
    first, *others = adversary.graphs()
    assert len(others) >= 2
    report = check_model(adversary.model().eval(), first, others, ranks=(1, 2, 3, 5), relative=1e-12)
    assert report.captures == 1, "one program serves all sizes"
    assert report.dtype == "float64"
    assert set(report.spaces) == adversary.spaces
    assert len(report.differences) >= 4 * len(adversary.graphs()) * 3


@pytest.mark.parametrize("name", cases())
def test_blocks_of_a_few_rows_change_nothing(name: str) -> None:
    """A program that works on 7 rows at a time gives what it gives on all rows at once, to rounding."""
    model, graphs, program = compiled(name)
    model.eval()
    try:
        regions = [m for m in program.program.tiled.modules() if isinstance(m, Region)]
        assert regions
        blocks = [region.block for region in regions]
        expected = call(model, graphs[1])
        for region in regions:
            region.block = 7
        for n in (1, 2):
            with torch.no_grad():
                found = call(program.on(LocalWorld(n)), graphs[1])
            for ours, stock in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, stock.detach(), rtol=1e-11, atol=1e-13)
        for region, block in zip(regions, blocks, strict=True):
            region.block = block
    finally:
        model.train()


def gradients(model: Any, graph: Any, parameters: list[nn.Parameter]) -> dict[str, list[Tensor]]:
    """For a loss on the energy and one on the forces, the gradient of every parameter; zero for those without any."""
    losses = {}
    for name, value in zip(("energy", "forces"), call(model, graph), strict=False):
        weights = torch.linspace(-0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        losses[name] = (weights * value + 0.1 * value**2).sum()
    found = {}
    for name, loss in losses.items():
        given = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found[name] = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given, strict=True)]
    return found


@pytest.mark.parametrize("name", cases(training=True))
def test_a_training_step_has_the_gradients_of_the_stock_model(name: str) -> None:
    """Gradients of every parameter on 1, 2 and 3 ranks; of a loss on forces they are second derivatives."""
    model, graphs, program = compiled(name)
    parameters = list(model.parameters())
    expected = gradients(model, graphs[1], parameters)
    for loss, stock in expected.items():
        assert sum(float(g.abs().max()) > 1e-3 for g in stock) >= 2, f"{loss} depends on parameters"
    for n in (1, 2, 3):
        found = gradients(program.on(LocalWorld(n)), graphs[1], parameters)
        for loss, stock in expected.items():
            for (parameter, _), a, b in zip(model.named_parameters(), found[loss], stock, strict=True):
                scale = max(float(b.abs().max()), 1e-3)
                assert float((a - b).abs().max()) < 1e-11 * scale, f"{loss} by {parameter} on {n} ranks"
    assert program.captures == 1


WITHOUT_ROWS = {
    "no edges": (ToReceivers, lambda g: [random_graph(3, volume=1e4), random_graph(1, volume=1e3)]),
    "no atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 2)]),
    "every atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 1)]),
    "one atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 0, others=1)]),
    "every edge is chosen": (EdgeMasks, lambda g: [of_one_species(g, 0)]),
    "one structure": (Batch, lambda g: batches((1,))),
}
"""Models and graphs on which some space has no row, or one."""


@pytest.mark.parametrize("name", WITHOUT_ROWS)
def test_spaces_may_have_no_rows(name: str) -> None:
    """A program compiled on an ordinary graph serves graphs without any row in some space."""
    model, change = WITHOUT_ROWS[name]
    example = (batches((5,)) if model is Batch else plain())[0]
    report = check_model(model().eval(), example, change(example), ranks=(1, 2, 3), relative=1e-12)
    assert report.captures == 1


@pytest.mark.parametrize(("over", "reductions"), [("receiver", set()), ("sender", {"amax", "sum"})])
def test_a_segment_softmax_needs_halos_only_at_the_end_that_does_not_own_the_edge(
    over: str, reductions: set[str]
) -> None:
    """Edges belong to their receivers, whose scores never leave the rank; those of senders meet in reductions."""
    graph = ADVERSARIES["softmax over receivers"].graphs()[0]
    program = distcompile.compile(SegmentSoftmax(over).eval(), graph, validate=False).program
    forward = [n for n in program.graph.graph.nodes if n.target is halo_reduce and "cat" not in n.name]
    before_energy = forward[: len(reductions)]
    assert {n.args[5] if len(n.args) > 5 else "sum" for n in before_energy} == reductions
    assert all(p.owner == (p.name == "edge_index_1") for p in program.pointers)


def test_what_is_no_tensor_is_returned_as_it_is() -> None:
    """Numbers, texts and None in a result, inputs handed back, parameters handed out."""
    model, graphs, program = compiled("passed through")
    for graph in graphs:
        result = program.on(LocalWorld(3))(graph)
        assert (result["cutoff"], result["name"], result["nothing"]) == (CUTOFF, "toy", None)
        assert result["several"][1][1] == 3
        for name in ("positions", "species", "edge_index"):
            assert result[name].dtype == graph[name].dtype
            assert torch.equal(result[name], graph[name])
        assert torch.equal(result["table"], model.embedding.weight)
        assert isinstance(result["several"][1], tuple)


def test_the_graph_given_is_not_changed() -> None:
    """Models that write to their graph write to a copy; tensors given do not start to require gradients."""
    _, graphs, program = compiled("sums at receivers")
    before = {name: tensor.clone() for name, tensor in graphs[1].items()}
    program(graphs[1])
    assert graphs[1].keys() == before.keys()
    assert all(torch.equal(before[name], graphs[1][name]) for name in before)
    assert not any(tensor.requires_grad for tensor in graphs[1].values())
