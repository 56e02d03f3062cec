"""One feature of a model at a time: on any number of ranks exactly what the stock model gives, gradients included."""

from __future__ import annotations

import collections
import contextlib
import functools
from typing import Any
from unittest import mock

import pytest
import torch
from adversaries import (
    ADVERSARIES,
    Adversary,
    AtomMasks,
    Batch,
    BatchCounted,
    EdgeMasks,
    PairsAndTriplesWithin,
    ToReceivers,
    Toy,
    add_to,
    bare,
    batches,
    counted_batches,
    of_one_species,
    plain,
)
from grids import GRIDS
from layers import LAYERS
from torch import Tensor, nn
from toys import CUTOFF, Graph, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld, testing
from distcompile.ir.tree import flatten
from distcompile.runtime.execution.tiles import Region
from distcompile.runtime.operators.halo import halo_reduce
from distcompile.testing import check_model

MODELS = ADVERSARIES | LAYERS | GRIDS


def cases(training: bool = False, missing: bool = False) -> list[Any]:
    """The names of the adversaries; those that cannot be trained, or `missing` ones, marked as failing."""
    found = []
    for name, adversary in MODELS.items():
        if adversary.missing and not missing:
            continue
        reason = adversary.missing or (adversary.untrainable if training else "")
        marks = [pytest.mark.xfail(strict=True, reason=reason, run="for ever" not in reason)] if reason else []
        found.append(pytest.param(name, marks=marks, id=name.replace(" ", "-")))
    return found


@functools.cache
def compiled(name: str) -> tuple[nn.Module, list[Any], DistributedModel]:
    """A model in training mode, its graphs, and its program on one rank."""
    adversary: Adversary = MODELS[name]
    model, graphs = adversary.model().train(), adversary.graphs()
    return model, graphs, distcompile.compile(model, graphs[0], world=LocalWorld(1), validate=False)


def call(model: Any, graph: Any) -> dict[str, Tensor]:
    """Every tensor of a model's result, by its path."""
    result = model(*graph) if isinstance(graph, tuple) else model(graph)
    return {leaf.path: leaf.tensor for leaf in flatten(result)[0]}


@pytest.mark.parametrize("name", cases(missing=True))
def test_every_output_is_exact_on_any_number_of_ranks(name: str) -> None:
    """Graphs of three sizes or more are served by one program, on 1 to 5 ranks, to 1e-12 in every output."""
    model, (first, *others), program = compiled(name)
    assert len(others) >= 2
    model.eval()
    with mock.patch.object(testing, "compile", return_value=program):
        report = check_model(model, first, others, ranks=(1, 2, 3, 5), relative=1e-12)
    assert report.captures == 1, "one program serves all sizes"
    assert report.dtype == "float64"
    assert set(report.spaces) == MODELS[name].spaces
    assert len(report.differences) >= 4 * (1 + len(others)) * 3


@pytest.mark.parametrize("name", cases())
def test_blocks_of_a_few_rows_change_nothing(name: str) -> None:
    """A program that works on a few rows at a time gives what it gives on all rows at once, to rounding.

    Each region on a number of its own, since what one computes again from another must not depend on how rows are cut.
    """
    model, graphs, program = compiled(name)
    expected = call(model.eval(), graphs[1])
    tiled = program.program.tiled
    assert tiled is not None
    regions = [m for m in tiled.modules() if isinstance(m, Region)]
    assert regions
    with contextlib.ExitStack() as stack:
        for i, region in enumerate(regions):
            stack.enter_context(mock.patch.object(region, "block", 5 + i % 4))
        for n in (1, 2):
            found = call(program.on(LocalWorld(n)), graphs[1])
            assert found.keys() == expected.keys()
            for path in expected:
                torch.testing.assert_close(found[path], expected[path].detach(), rtol=1e-11, atol=1e-13)


def gradients(model: Any, graph: Any, parameters: list[nn.Parameter]) -> dict[str, list[Tensor]]:
    """For a loss on the energy and one on the forces, the gradient of every parameter; zero for those without any."""
    result, losses = call(model, graph), {}
    for name, in_tuple in (("energy", "[0]"), ("forces", "[1]")):
        value = next(v for path, v in result.items() if path.endswith(f"['{name}']") or path == in_tuple)
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
    parameters = list(model.train().parameters())
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


def test_a_number_that_a_model_makes_an_int_of_is_looked_at_again() -> None:
    """It is a constant of the program: a graph that holds another number gets a program of its own."""
    model, graphs = BatchCounted(int).eval(), counted_batches((5, 6, 5))
    program = distcompile.compile(model, graphs[0], world=LocalWorld(2), validate=False)
    for graph in graphs:
        found = program(graph)
        for key, value in model(graph).items():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-11, atol=1e-13)
    assert program.captures == 2


def test_a_number_of_the_example_that_other_graphs_do_not_fit_is_looked_at_again() -> None:
    """The most neighbours of an atom, a constant here, is the size of a table: with more, indices do not fit it."""
    model, graphs = PairsAndTriplesWithin(int).eval(), bare()
    program = distcompile.compile(model, graphs[0], world=LocalWorld(2), validate=False)
    for graph in graphs:
        found = program(*graph)
        for key, value in model(*graph).items():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-11, atol=1e-13)
    assert program.captures > 1


WITHOUT_ROWS = {
    "no edges": (ToReceivers, lambda g: [random_graph(3, volume=1e4), random_graph(1, volume=1e3)]),
    "no atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 2)]),
    "every atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 1)]),
    "one atom is chosen": (AtomMasks, lambda g: [of_one_species(g, 0, others=1)]),
    "every edge is chosen": (EdgeMasks, lambda g: [of_one_species(g, 0)]),
    "one structure": (Batch, lambda g: batches((1,))),
}
"""Models and graphs on which some space has no row, or one."""


def test_a_branch_for_atoms_without_edges_is_taken_whole() -> None:
    """Where it reads nothing through an index there is nothing to divide; the program of the example is kept."""

    class Isolated(ToReceivers):
        def forward(self, graph: Graph) -> Any:
            if graph["edge_index"].shape[1] == 0:
                return {"energy": self.readout(self.embedding(graph["species"])).sum()}
            return super().forward(graph)

    model, alone = Isolated().eval(), random_graph(6, seed=1, volume=1e4)
    assert alone["edge_index"].shape[1] == 0
    program = distcompile.compile(model, plain()[0], world=LocalWorld(2))
    for graph in (alone, plain()[1], alone):
        torch.testing.assert_close(program(graph)["energy"], model(graph)["energy"], rtol=1e-12, atol=0)
    assert program.captures == 1


@pytest.mark.parametrize("name", WITHOUT_ROWS)
def test_spaces_may_have_no_rows(name: str) -> None:
    """A program compiled on an ordinary graph serves graphs without any row in some space."""
    model, change = WITHOUT_ROWS[name]
    example = (batches((5,)) if model is Batch else plain())[0]
    report = check_model(model().eval(), example, change(example), ranks=(1, 2, 3), relative=1e-12)
    assert report.captures == 1


def test_a_segment_softmax_needs_halos_only_at_the_end_that_does_not_own_the_edge() -> None:
    """Edges belong to their receivers, whose scores never leave the rank; the largest scores of senders meet."""
    found = {}
    for over in ("receiver", "sender"):
        program = compiled(f"softmax over {over}s")[2].program
        assert {p.name for p in program.pointers if p.owner} == {"edge_index_1"}, "the receivers"
        reductions = [n for n in program.graph.graph.nodes if n.target is halo_reduce]
        found[over] = collections.Counter(n.args[5] if len(n.args) > 5 else "sum" for n in reductions)
    assert found["receiver"]["amax"] == 0
    assert found["sender"]["amax"] == 1
    assert found["sender"]["sum"] > found["receiver"]["sum"] >= 1


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


def attenuated(messages: Tensor, lengths: Tensor) -> Tensor:
    """Sizes asked for, as TorchScript would fix them."""
    return messages * torch.exp(-lengths).unsqueeze(-1).expand(messages.size(0), messages.size(1))


class Scripted(Toy):
    """A scripted module, and a scripted function that the model holds as an attribute."""

    def more(self) -> None:
        self.deep = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
        self.attenuated = torch.jit.script(attenuated)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        return torch.tanh(h + self.mix(add_to(self.attenuated(self.deep(h)[sender] * w, lengths), receiver, h)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_parts() -> None:
    """Of other sizes than the example's; the model keeps them as they were."""
    model = Scripted().eval()
    check_model(model, random_graph(20), random_graph(11, 3))
    assert isinstance(model.attenuated, torch.jit.ScriptFunction)
    assert isinstance(model.deep, torch.jit.ScriptModule)


class Compiled(Toy):
    """A compiled module, and a compiled function that the model holds as an attribute."""

    def more(self) -> None:
        self.deep = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), backend="eager")
        self.attenuated = torch.compile(attenuated, backend="eager", fullgraph=True)

    update = Scripted.update


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_parts(whole: bool) -> None:
    """What torch.compile made is followed as the Python that it was made of, be it a part or the model itself."""
    model = Compiled().eval()
    report = check_model(
        torch.compile(model, backend="eager") if whole else model, random_graph(20), random_graph(11, 3), (1, 3)
    )
    assert report.captures == 1
    assert isinstance(model.deep, torch._dynamo.OptimizedModule), "it is what it was"
