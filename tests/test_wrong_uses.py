"""Every wrong use ends in an error of distcompile's own that says what is wrong: never in a wrong number, nor in an
error from the depths of torch.

`WRONG` lists them: how to provoke it, the type of the error, and words that its message must hold.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from adversaries import AllWithAll, BatchCounted, F, ToReceivers, counted_batches, plain
from grids import ElementsOfAMatrix, not_square
from torch import Tensor, nn
from toys import CUTOFF, Gnn, Graph, random_graph
from undividable import Given, Update

import distcompile
from distcompile import (
    CaptureError,
    DistcompileError,
    DistributedModel,
    InputError,
    LocalWorld,
    ProcessGroupWorld,
    RankError,
    UnsupportedOp,
    ValidationError,
)
from distcompile.calculators.calculator import load_calculator
from distcompile.check.validate import compare
from distcompile.ir.tree import Leaf
from distcompile.runtime.division.shard import shard_inputs
from distcompile.runtime.execution import budget
from distcompile.runtime.operators.halo import all_reduce
from distcompile.testing import check_model

EXAMPLE, OTHER = plain()[:2]
"""10 atoms, and 17."""


@functools.cache
def gnn() -> DistributedModel:
    """An ordinary model on two ranks."""
    return distcompile.compile(Gnn(), EXAMPLE, world=LocalWorld(2))


def with_(**changes: Tensor) -> Callable[[], Any]:
    """Call an ordinary model on an ordinary graph of which some tensors are others."""
    return lambda: gnn()({**OTHER, **changes})


def beyond_the_last() -> Any:
    """A batch that is said, in a tensor, to have fewer structures than it has."""
    example, other = counted_batches((5, 6))
    model = distcompile.compile(BatchCounted(Tensor.item).eval(), example, world=LocalWorld(2), validate=False)
    return model({**other, "n_graphs": torch.tensor(3)})


def mask_the_other_way() -> Any:
    """A matrix of neighbours with the mask of its transpose: as many elements, in another shape."""
    example, other, *_ = not_square()
    model = distcompile.compile(ElementsOfAMatrix().eval(), example, world=LocalWorld(2), validate=False)
    return model({**other, "there": other["there"].T.contiguous()})


def put(name: str, where: Any, value: float) -> Tensor:
    """A tensor of the ordinary graph with one element changed."""
    tensor = OTHER[name].clone()
    tensor[where] = value
    return tensor


def computing(then: Update, *, graph: Graph = OTHER, validate: bool = False) -> Callable[[], Any]:
    """Compile a model that computes `then`, and call it on a graph of another size."""

    def provoke() -> Any:
        compiled = distcompile.compile(Given(then).eval(), EXAMPLE, world=LocalWorld(2), validate=validate)
        return compiled(graph)

    return provoke


class EnergyAlone(Gnn):
    """An energy that carries gradients to the positions it was given."""

    def forward(self, graph: Graph) -> Any:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        return self.energy(graph, vectors, vectors.norm(dim=-1))[0]


class Caching(ToReceivers):
    """Keeps a tensor of its first call, of so many rows, for all later ones."""

    kept: Tensor | None = None

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(h.shape[0], 1, dtype=h.dtype)
        return super().update(graph, h, w, vectors, lengths) * self.kept


class Counting(ToReceivers):
    """Gives another result at every call."""

    calls = 0

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        self.calls += 1
        return super().update(graph, h, w, vectors, lengths) * self.calls


def buffered(rows: int) -> Update:
    """Multiply by a table that was made for a number of rows."""
    table = torch.linspace(1, 2, rows, dtype=torch.float64)[:, None]
    return lambda model, graph, h, w, lengths: h * table


class Summing(ToReceivers):
    """Sums in a table of as many rows as a tensor of the graph says."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        return (
            torch.zeros(int(graph["sizes"].sum()), F).double().index_add(0, receiver, w * h[sender])[receiver].sum() * h
        )


def counting(number: int) -> Callable[[], Any]:
    """Compile a model that is told how many atoms there are, and tell it another number."""
    example = {**EXAMPLE, "sizes": torch.tensor([len(EXAMPLE["positions"])])}
    return lambda: distcompile.compile(Summing().eval(), example, world=LocalWorld(2), validate=False)(
        {**OTHER, "sizes": torch.tensor([number])}
    )


WITH_LONER = {
    **OTHER, "positions": torch.cat([OTHER["positions"], OTHER["positions"][:1] + 100]),
    "species": torch.cat([OTHER["species"], OTHER["species"][:1]]),
}  # fmt: skip
"""Its last atom has no edges."""


def raising(*_: Any) -> Tensor:
    raise KeyError("charges")


def outside_of_a_world() -> Any:
    """Run the rewritten graph by hand, on the rows of rank 0."""
    compiled = gnn()
    executor = compiled.executor_for(OTHER)
    prepared = executor.prepare(compiled.flatten((OTHER,))[0])
    layout = executor.layout(prepared)
    spaces = {s.symbol: s for s in compiled.program.row_spaces}
    plans = layout.division.for_rank(0)
    given = shard_inputs(executor.inputs, executor._shapes, prepared.values, spaces, plans, layout.sizes, layout.orders)
    return compiled.graph_module(*given)


def compiling(model: Any, graph: Any = EXAMPLE, **options: Any) -> Callable[[], Any]:
    return lambda: distcompile.compile(model, graph, **options)


def case(id: str, provoke: Callable[[], Any], error: type[Exception], *words: str, missing: str = "") -> Any:
    """One wrong use; `missing` says why it is not refused in this way yet."""
    marks = [pytest.mark.xfail(strict=True, reason=missing, run="for ever" not in missing)] if missing else []
    return pytest.param(provoke, error, words, id=id, marks=marks)


class InForward(nn.Module):
    """Asks for the values of a tensor in ``forward``, which cannot be one step: there is more in it."""

    def forward(self, graph: Graph) -> Any:
        widths = torch.from_numpy(np.asarray(graph["edge_index"]).max(1))
        return {"energy": graph["positions"][graph["edge_index"][0]].sum() * widths[0]}


WRONG = [
    # The graph is not what the model was compiled for.
    case("positions the other way round", with_(positions=OTHER["positions"].T.contiguous()), InputError,
         "graph['positions'] has shape (3, ", "compiled for (*, 3)"),
    case("positions on another device", with_(positions=OTHER["positions"].to("meta")), InputError,
         "graph['positions'] is on meta", "compiled on cpu", ".to('cpu')"),
    case("float32 positions", with_(positions=OTHER["positions"].float()), InputError,
         "graph['positions'] is torch.float32", "compiled for torch.float64", ".to(torch.float64)"),
    case("int32 edges", with_(edge_index=OTHER["edge_index"].int()), InputError, "graph['edge_index'] is torch.int32"),
    case("shifts of two components", with_(shifts=OTHER["shifts"][:, :2]), InputError,
         "graph['shifts'] has shape", "(*, 3)"),
    case("positions with a dimension too many", with_(positions=OTHER["positions"][..., None]), InputError,
         "graph['positions'] has shape (17, 3, 1)"),
    case("a missing key", lambda: gnn()({k: v for k, v in OTHER.items() if k != "shifts"}), InputError,
         "missing graph['shifts']"),
    case("a key too many", with_(velocities=OTHER["positions"]), InputError, "unexpected graph['velocities']"),
    case("a list for a dict", lambda: gnn()(list(OTHER.values())), InputError, "missing graph['cell']", "graph[0]"),
    case("two inputs for one", lambda: gnn()(OTHER, OTHER["cell"]), InputError, "unexpected input 1"),
    case("no input", lambda: gnn()(), InputError, "missing graph['cell']"),
    case("no input of a model whose result carries gradients",
         lambda: distcompile.compile(EnergyAlone().requires_grad_(False), EXAMPLE, world=LocalWorld(2))(), InputError,
         "missing graph['cell']"),
    case("no tensors in a call", lambda: gnn()({"cutoff": CUTOFF}), CaptureError,
         "The graph object holds no tensors", "nothing to evaluate"),
    case("NaN positions", with_(positions=put("positions", (3, 1), torch.nan)), InputError,
         "graph['positions'] is NaN or infinite at (3, 1)"),
    case("infinite cell", with_(cell=put("cell", (0, 0), torch.inf)), InputError, "graph['cell'] is NaN or infinite"),
    case("an edge to an atom that does not exist", with_(edge_index=put("edge_index", (0, 5), 99)), InputError,
         "graph['edge_index'] refers to number 99 (at position 5)", "17 rows of atoms"),
    case("an edge to atom -1", with_(edge_index=put("edge_index", (1, 2), -1)), InputError,
         "graph['edge_index'] refers to number -1", "17 rows of atoms"),
    case("a species that the model lacks", with_(species=put("species", 4, 7)), InputError,
         "graph['species'] refers to number 7", "3 entries", "species"),
    case("an atom of a structure beyond the last", beyond_the_last, InputError,
         "graph['batch'] refers to number 5", "there are 3 entries of the table that it is an index of"),
    case("a shift too few", with_(shifts=OTHER["shifts"][1:]), InputError,
         "graph['shifts'] has", "rows where graph['edge_index'] has"),
    case("a species too few", with_(species=OTHER["species"][1:]), InputError,
         "graph['species'] has 16 rows where graph['positions'] has 17"),
    # The example.
    case("no tensors in the example", compiling(Gnn(), {"cutoff": CUTOFF}), CaptureError,
         "The graph object holds no tensors", "nothing to evaluate"),
    # Operators that torch follows with the example's sizes, or that no rank can run for the others.
    case("an atom beyond the last", computing(lambda m, g, h, w, r: h * h[9], graph=random_graph(8, 1)), CaptureError,
         "index 9 is out of bounds", "test_wrong_uses.py"),
    case("a Fourier transform over atoms", computing(lambda m, g, h, w, r: h * torch.fft.fft(h, dim=0).real),
         CaptureError, "baked"),
    case("random numbers for pairs of atoms", computing(lambda m, g, h, w, r: torch.rand(len(h), len(h)).to(h) @ h),
         UnsupportedOp, "aten.rand", "every row of one space", "draws random numbers", "test_wrong_uses.py"),
    case("a mask the other way", mask_the_other_way, InputError, "has 5 rows, not the 10", "graph['there']"),
    case("one row overwritten twice", computing(lambda m, g, h, w, r: h.index_put((g["edge_index"][1],), w)),
         InputError, "overwrites one row twice", "index_add"),
    # Values that went through Python.
    case("NumPy in forward itself", compiling(InForward().eval()), CaptureError, "forward itself asks for the values",
         "test_wrong_uses.py", "np.asarray"),
    case("features as a list", computing(lambda m, g, h, w, r: h * torch.tensor(h[:, 0].tolist()).double()[:, None]),
         CaptureError, "(10) was baked", "tensor.shape"),
    case("a loop over atoms among the features",
         computing(lambda m, g, h, w, r: torch.stack([h[k].sin() for k in range(h.shape[0])])), CaptureError,
         "(10) was baked", "test_wrong_uses.py", "a loop over rows"),
    case("more atoms than there are", counting(31), InputError, "says that there are 31", "has 17 atoms"),
    case("fewer atoms than there are", counting(9), InputError, "says that there are 9", "has 17 atoms"),
    case("an atom without edges, where edges say how many there are",
         computing(lambda m, g, h, w, r: h + torch.zeros(int(g["edge_index"].max()) + 1, F).double(), graph=WITH_LONER),
         CaptureError, "must match the size", "test_wrong_uses.py", "stock model runs"),
    case("a table for the atoms of the example", computing(buffered(10)), CaptureError, "(10) was baked"),
    case("a table read through a pointer",
         computing(lambda m, g, h, w, r: h + torch.ones(10, F).double()[g["edge_index"][0]].sum()), InputError,
         "graph['edge_index'] refers to number 16", "10 entries"),
    # Models that are no functions of their graph.
    case("noise", computing(lambda m, g, h, w, r: h + torch.randn_like(h), validate=True), ValidationError,
         "differs from the stock model", "random"),
    case("one random number", computing(lambda m, g, h, w, r: h + np.random.random(), validate=True), ValidationError,
         "differs from the stock model", "random"),
    case("dropout in training mode",
         lambda: distcompile.compile(Given(lambda m, g, h, w, r: nn.functional.dropout(h, 0.5)).train(), EXAMPLE),
         DistcompileError, "bernoulli"),
    case("a result that depends on earlier calls", compiling(Counting()), ValidationError, "caches"),
    case("a tensor kept from the first call", compiling(Caching()), ValidationError, "stock model fails", "keep"),
    case("an error of the model's own", computing(raising), CaptureError, "KeyError: 'charges'", "test_wrong_uses.py"),
    case("shapes that do not fit", computing(lambda m, g, h, w, r: h @ h), CaptureError,
         "mat1 and mat2", "test_wrong_uses.py", "stock model runs"),
    case("a wrong model in the conformance kit",
         lambda: check_model(Counting(), EXAMPLE, OTHER, ranks=(1, 2)), ValidationError,
         "does not reproduce the stock model", "FAILED", "['energy']"),
    # Options.
    case("too little memory", lambda: distcompile.compile(Gnn(), EXAMPLE, memory=1000, validate=False)(OTHER),
         InputError, "memory=1000", "ranks or more"),
    case("a model that is compiled already", lambda: distcompile.compile(gnn(), EXAMPLE, validate=False), CaptureError,
         "compiled one already", "Compile the stock model"),
    case("a model by its name", compiling("mace"), TypeError, "module or a function", "not str"),
    case("a world by its size", compiling(Gnn(), world=2), TypeError, "LocalWorld(n)", "not 2"),
    case("memory in words", compiling(Gnn(), memory="2GB"), TypeError, "number of bytes", "'2GB'"),
    case("less than no memory", compiling(Gnn(), memory=-5), ValueError, "above zero", "-5"),
    case("an error in words", compiling(Gnn(), radial_error="1e-6"), TypeError, "relative error", "'1e-6'"),
    case("no error at all", compiling(Gnn(), radial_error=0.0), ValueError, "above zero", "0.0"),
    case("an unknown lowering", compiling(Gnn(), lowering="cuda"), ValueError, "unknown lowering 'cuda'", "eager"),
    case("a world without ranks", lambda: LocalWorld(0), ValueError, "at least one rank, not 0"),
    case("no process group", ProcessGroupWorld, RankError, "not initialised", "torchrun"),
    case("the graph module called by hand", outside_of_a_world, RankError, "outside of a world", "compiled model"),
    case("a collective by hand", lambda: all_reduce(torch.ones(3)), RankError, "outside of a world"),
    case("a calculator without a model", lambda: distcompile.distribute(object()), TypeError,
         "holds no torch.nn.Module"),
    case("a calculator that does not exist", lambda: load_calculator("no_such_package:calculator"), ValueError,
         "no_such_package"),
    case("a name that is no path", lambda: load_calculator("emt"), ValueError, "'emt' is neither", "import path"),
]  # fmt: skip


@pytest.mark.parametrize(("provoke", "error", "words"), WRONG)
@pytest.mark.filterwarnings("ignore")
def test_ends_in_its_own_error(provoke: Callable[[], Any], error: type[Exception], words: tuple[str, ...]) -> None:
    """The type is exactly the one documented, the message names the cause."""
    with pytest.raises(error) as caught:
        provoke()
    assert type(caught.value) is error or error is DistcompileError
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert len(message) < 1500, "a message is to be read"


def test_a_table_of_rows_by_rows_that_does_not_fit_is_refused_before_it_is_built() -> None:
    """A model that compares all edges with all asks for memory that grows with their square."""
    compiled = distcompile.compile(AllWithAll().eval(), EXAMPLE, world=LocalWorld(2), validate=False)
    large = random_graph(400, cutoff=2.6)
    n_edges = large["edge_index"].shape[1]
    with mock.patch.object(budget, "available", return_value=n_edges**2 - 1), pytest.raises(InputError) as caught:
        compiled(large)
    for word in (f"{n_edges} x {n_edges} elements", "on every rank", "receiver[:, None] == receiver", "line graph"):
        assert word in str(caught.value)
    with mock.patch.object(budget, "available", return_value=10 * n_edges**2):
        assert compiled(large)["forces"].shape == (400, 3)
    assert (budget.available() or 2**30) > 2**20


def test_there_are_enough_of_them() -> None:
    """No two wrong uses have one name."""
    names = [param.id for param in WRONG]
    assert len(set(names)) == len(names) >= 25


def test_a_refused_graph_does_not_spoil_the_next_one() -> None:
    """Ranks stay in step after an error: the next graph is evaluated as before."""
    expected = gnn()(OTHER)["forces"].clone()
    for changes in ({"positions": OTHER["positions"] * torch.nan}, {"edge_index": OTHER["edge_index"] + 10}):
        with pytest.raises(InputError):
            gnn()({**OTHER, **changes})
        assert torch.equal(gnn()(OTHER)["forces"], expected)


def test_an_error_on_one_virtual_rank_reaches_the_caller() -> None:
    """No rank is left waiting: the error of the one that failed is raised."""

    def work(comm: Any) -> None:
        if comm.rank == 1:
            raise ValueError("rank 1 fails")
        comm.all_reduce(torch.ones(1))

    with pytest.raises(ValueError, match="rank 1 fails"):
        LocalWorld(3).run(work)


BRANCHES: dict[str, Update] = {
    "number of atoms": lambda model, graph, h, w, lengths: 2 * h if h.shape[0] > 12 else h,
    "number of edges": lambda model, graph, h, w, lengths: h.sin() if w.shape[0] < 100 else h,
    "item of a float": lambda model, graph, h, w, lengths: 2 * h if lengths.max().item() < 2.58 else h,
    "item of an integer": lambda model, graph, h, w, lengths: 2 * h if int(graph["species"].sum()) < 13 else h,
    "truth of a tensor": lambda model, graph, h, w, lengths: 2 * h if (lengths > 2.58).any() else h,
}
"""Branches that `EXAMPLE` and `OTHER` take differently."""


@pytest.mark.parametrize("name", BRANCHES)
def test_another_branch_of_the_model_is_captured_when_a_graph_takes_it(name: str) -> None:
    """One program for each side; both are kept, and each graph gets the right one, again and again."""
    model = Given(BRANCHES[name]).eval()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(2))
    for graph in (EXAMPLE, OTHER, EXAMPLE, OTHER):
        found, expected = compiled(graph), model(graph)
        for output in expected:
            torch.testing.assert_close(found[output], expected[output].detach(), rtol=1e-11, atol=1e-13)
    assert compiled.captures == 2


def test_python_numbers_of_a_graph_are_constants_of_a_program() -> None:
    """A graph with another cutoff gets a program of its own; the first one is kept."""

    class Scaled(ToReceivers):
        def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
            return super().update(graph, h, w, vectors, lengths) * graph["scale"]

    model = Scaled().eval()
    compiled = distcompile.compile(model, {**EXAMPLE, "scale": 2.0}, world=LocalWorld(2))
    for scale in (2.0, 0.5, 2.0, 0.5):
        graph = {**OTHER, "scale": scale}
        torch.testing.assert_close(compiled(graph)["energy"], model(graph)["energy"].detach(), rtol=1e-12, atol=0)
    assert compiled.captures == 2


def test_strings_of_a_graph_that_the_model_reads_are_constants_of_a_program() -> None:
    """Another data set takes another head, and a program of its own; another identifier does not."""

    class Headed(ToReceivers):
        def update(self, graph: Any, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
            (dataset,) = graph["dataset"]
            heads = {"bulk": 0.5, "molecules": 2.0}
            return super().update(graph, h, w, vectors, lengths) * heads[dataset]

    model = Headed().eval()
    compiled = distcompile.compile(model, {**EXAMPLE, "dataset": ["bulk"], "name": "example"}, world=LocalWorld(2))
    for dataset, name in (("molecules", "a"), ("bulk", "b"), ("molecules", "c"), ("bulk", "d")):
        graph = {**OTHER, "dataset": [dataset], "name": name}
        torch.testing.assert_close(compiled(graph)["energy"], model(graph)["energy"].detach(), rtol=1e-12, atol=0)
    assert compiled.captures == 2


def test_a_result_that_is_not_a_number_in_the_stock_model_is_not_one_here() -> None:
    """The mean over no atom of a kind; what is one in one of the two models only is still an error."""

    class Means(ToReceivers):
        def energy(self, graph: Any, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
            energy, others = super().energy(graph, vectors, lengths)
            return energy, {**others, "mean": lengths[lengths < 0].mean()}

    model = Means().eval()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(2))
    assert bool(compiled(OTHER)["mean"].isnan())
    torch.testing.assert_close(compiled(OTHER)["energy"], model(OTHER)["energy"].detach(), rtol=1e-12, atol=0)
    one, none = Leaf("['mean']", torch.tensor([1.0])), Leaf("['mean']", torch.tensor([torch.nan]))
    with pytest.raises(ValidationError, match="differs from the stock model by nan"):
        compare([one], [none], "on the example")


def test_the_error_names_the_line_of_the_helper_that_is_wrong() -> None:
    """Models are made of functions and methods; the line in forward that calls them says little."""

    def wrong(h: Tensor) -> Tensor:
        return torch.rand(len(h), len(h)).to(h) @ h  # this line

    with pytest.raises(UnsupportedOp, match="this line"):
        computing(lambda model, graph, h, w, lengths: wrong(h))()


def test_a_gradient_is_not_lost_in_numpy() -> None:
    """A method that uses NumPy somewhere is run as it is, as a whole, without gradients; it may not compute any."""

    class Hidden(ToReceivers):
        def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> Any:
            energy, others = super().energy(graph, vectors, lengths)
            return energy + self.inside_and_outside(graph, lengths), others

        def inside_and_outside(self, graph: Graph, lengths: Tensor) -> Tensor:
            order = torch.from_numpy(np.argsort(graph["species"].numpy()))
            return (lengths**2).sum() + 0 * order.sum()

    with pytest.raises(CaptureError, match=r"inside_and_outside leaves torch.*gradient, which would be lost"):
        distcompile.compile(Hidden().eval(), EXAMPLE, world=LocalWorld(2), validate=False)
