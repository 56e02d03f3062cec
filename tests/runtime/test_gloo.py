"""Real processes over gloo: the same answers as one rank, and on bad input one clear error on every rank.

A rank that raises alone leaves the others waiting in a collective, so what is held here is that all of them raise.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import structures
import torch
import torch.distributed as dist
import toys
import zoo
from adversaries import SegmentSoftmax
from processes import run_ranks
from torch import Tensor

import distcompile
from distcompile import InputError, LocalWorld, RankError
from distcompile.ir.tree import flatten

TOYS = {"Pair": {}, "Gnn": {}, "Eam": {"half": True}, "ThreeBody": {"angles": True}}
"""The toy models, and the options of their graphs."""


def compiled(name: str, **options: Any) -> tuple[Any, Any]:
    """A toy model compiled for the world that there is, and the stock one."""
    model = getattr(toys, name)().eval()
    return distcompile.compile(model, toys.random_graph(14, 1, **TOYS[name]), **options), model


def errors(answers: list[Any], *kinds: type[Exception]) -> list[str]:
    """The messages of all ranks, each of which must have raised one of `kinds`."""
    for rank, answer in enumerate(answers):
        assert isinstance(answer, kinds), f"rank {rank}: {answer!r}"
    return [str(answer) for answer in answers]


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12, msg=lambda m: f"{name}: {m}")  # noqa: B023


# ---- the same answers


def evaluate_toys(names: list[str], sizes: list[int]) -> dict[str, Any]:
    results = {}
    for name in names:
        options = TOYS[name]
        model, _ = compiled(name)
        results[name] = [model(toys.random_graph(n, n, **options)) for n in sizes]
        owned = [row["owned"]["atoms"] for row in model.stats(toys.random_graph(30, 30, **options))]
        assert len(owned) == dist.get_world_size()
        assert min(owned) > 0
    return results


@pytest.mark.parametrize(("n", "names"), [(2, list(TOYS)), (3, ["Gnn", "ThreeBody"])])
def test_processes_equal_one_rank(n: int, names: list[str]) -> None:
    """Energy, forces, stress and energies of atoms, whole on every rank, down to one atom (other ranks have none)."""
    sizes = [30, 5, 1]
    answers = run_ranks(n, evaluate_toys, names, sizes)
    for name in names:
        model, stock = compiled(name, world=LocalWorld(1), validate=False)
        for i, size in enumerate(sizes):
            graph = toys.random_graph(size, size, **TOYS[name])
            expected = model(graph)
            close(expected, stock(graph))
            for answer in answers:
                assert isinstance(answer, dict), answer
                close(answer[name][i], expected)


class OnData(toys.Gnn):
    """The model for a PyG Data, as matgl and fairchem use it."""

    def forward(self, data: Any) -> dict[str, Tensor]:
        names = ("positions", "species", "edge_index", "shifts", "cell")
        return super().forward({name: data[name] for name in names})


def evaluate_data() -> dict[str, Tensor]:
    from torch_geometric.data import Data

    graph = Data(**toys.random_graph(14, 1))
    return distcompile.compile(OnData().eval(), graph)(graph)


def test_pyg_data_on_processes() -> None:
    """PyG's Data keeps its keys in a set; the ranks' hashes of names differ, their graphs do not."""
    pytest.importorskip("torch_geometric.data")
    expected = toys.Gnn()(toys.random_graph(14, 1))
    for answer in run_ranks(3, evaluate_data):
        assert isinstance(answer, dict), answer
        close(answer, expected)


def evaluate_stock() -> dict[str, float]:
    """Largest differences to the stock model, relative to the largest value of each result."""
    case = zoo.mace()
    example, other = case.graph(structures.crystal((2, 1, 1))), case.graph(structures.crystal((2, 2, 1)))
    model = distcompile.compile(case.model, example, model_kwargs=case.kwargs, validate=False)
    found = {leaf.path: leaf.tensor for leaf in flatten(model(copy.deepcopy(other)))[0]}
    assert model.captures == 1
    assert min(row["halo"]["atoms"] for row in model.stats(other)) > 0
    expected = {leaf.path: leaf.tensor.detach() for leaf in flatten(case.model(other, **case.kwargs))[0]}
    assert found.keys() == expected.keys()
    return {
        path: float((found[path] - stock).abs().max() / stock.abs().max().clamp(min=1e-3))
        for path, stock in expected.items()
        if stock.is_floating_point() and stock.numel()
    }


def test_a_stock_model_on_two_processes() -> None:
    """MACE in float64, compiled on one structure, evaluated on a larger one; CHGNet is run from the command line."""
    for answer in run_ranks(2, evaluate_stock):
        assert isinstance(answer, dict), answer
        for result in ("['energy']", "['forces']", "['stress']"):
            assert any(path.startswith(result) for path in answer), f"no {result} among {list(answer)}"
        assert max(answer.values()) < 1e-9, answer


def train_through_largest(compiled: bool) -> list[Tensor]:
    """Gradients of the parameters of a model that follows largest values, some of rows of other ranks."""
    model = SegmentSoftmax("sender", detach=False).train()
    graph = toys.random_graph(14, 1)
    result = (distcompile.compile(model, graph, validate=False) if compiled else model)(toys.random_graph(20, 2))
    (result["energy"] + result["forces"].square().sum()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_gradients_of_largest_values_on_two_processes() -> None:
    """Every rank has those of the stock model."""
    expected = train_through_largest(False)
    for answer in run_ranks(2, train_through_largest, True):
        assert not isinstance(answer, Exception), answer
        for found, stock in zip((g for g in answer if g.any()), (g for g in expected if g.any()), strict=True):
            torch.testing.assert_close(found, stock, rtol=1e-11, atol=1e-11)


def call_collectives() -> list[Any]:
    """Every collective, with ranks that have no rows, in every kind of number that results and row numbers come in."""
    world: Any = distcompile.ProcessGroupWorld() if dist.is_initialized() else LocalWorld(3)

    def work(comm: Any) -> list[Any]:
        numbers = torch.arange(4.0) * (-1) ** comm.rank * (comm.rank + 1)
        results = [comm.all_gather_objects({"rank": comm.rank})]
        for dtype in (torch.float64, torch.float32, torch.int64):
            results += [comm.all_reduce(numbers.to(dtype), how) for how in ("sum", "amax", "amin")]
        for dtype in (torch.float64, torch.float32, torch.int64, torch.int32, torch.bool):
            for counts in ([2, 0, 1], [0, 0, 0]):
                results.append(comm.all_gather(numbers[: counts[comm.rank], None].to(dtype), counts))
            send, receive = ([0, 2, 0], [0, 0, 1], [1, 0, 0])[comm.rank], ([0, 0, 1], [2, 0, 0], [0, 1, 0])[comm.rank]
            results.append(comm.all_to_all(numbers[: sum(send)].to(dtype), send, receive))
        return results

    return list(world.run(work))


def test_collectives_of_processes_equal_those_of_virtual_ranks() -> None:
    answers = run_ranks(3, call_collectives)
    for rank, expected in enumerate(call_collectives()):
        ((objects, *tensors),) = answers[rank]
        assert objects == expected[0] == [{"rank": r} for r in range(3)]
        assert len(tensors) == len(expected) - 1 == 24
        for ours, theirs in zip(tensors, expected[1:], strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def evaluate_without_pickles(name: str) -> list[Any]:
    """Compile and evaluate where nothing that comes over the network can be unpickled."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("something that came over the network is unpickled")

    c10d = dist.distributed_c10d
    before, c10d._unpickler = c10d._unpickler, refuse  # type: ignore[attr-defined]
    try:
        model, _ = compiled(name)
        found = model(toys.random_graph(20, 2))
        said = model.world.run(lambda comm: comm.all_gather_objects((comm.rank, None, 0.1, "\xe5" * comm.rank)))
    finally:
        c10d._unpickler = before  # type: ignore[attr-defined]
    return [found["energy"].detach(), *said]


def test_nothing_that_other_ranks_send_is_unpickled() -> None:
    """What unpickles what others send runs what others write."""
    expected = compiled("Gnn")[0](toys.random_graph(20, 2))["energy"]
    for energy, said in run_ranks(2, evaluate_without_pickles, "Gnn"):
        torch.testing.assert_close(energy, expected.detach(), rtol=1e-12, atol=1e-12)
        assert said == [[0, None, 0.1, ""], [1, None, 0.1, "\xe5"]]


# ---- what ASE keeps in files


def frequencies(folder: str) -> list[Any]:
    """Vibrations of two atoms and phonons of a crystal, as running.md has them: each rank in a folder of its own."""
    from ase.build import bulk
    from ase.phonons import Phonons
    from ase.vibrations import Vibrations
    from springs import SpringCalculator

    grouped = dist.is_initialized()
    rank = dist.get_rank() if grouped else 0
    atoms = structures.crystal((1, 1, 1))
    atoms.calc = distcompile.distribute(SpringCalculator()) if grouped else SpringCalculator()
    vibrations = Vibrations(atoms, indices=[0, 4], name=f"{folder}/vib{rank}")
    vibrations.run()
    phonons = Phonons(bulk("MgO", "rocksalt", a=4.21), atoms.calc, supercell=(2, 2, 2), name=f"{folder}/phonon{rank}")
    phonons.run()
    phonons.read(acoustic=True)
    return [vibrations.get_energies(), phonons.band_structure([[0.1, 0.2, 0.0], [0.5, 0.5, 0.0]])]


def test_vibrations_and_phonons_on_two_processes(tmp_path: Any) -> None:
    """With a name for each rank, all ranks take the same steps, and have the frequencies of the stock calculator."""
    expected = frequencies(str(tmp_path / "stock"))
    assert np.abs(expected[0]).max() > 0.01
    assert expected[1].max() > 0.03
    for answer in run_ranks(2, frequencies, str(tmp_path / "ranks")):
        for ours, theirs in zip(answer, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


# ---- bad input


def damaged(graph: dict[str, Tensor], damage: str) -> dict[str, Tensor]:
    """A copy of a graph with one thing wrong."""
    graph = {name: value.clone() for name, value in graph.items()}
    match damage:
        case "nan":
            graph["positions"][3, 1] = torch.nan
        case "dtype":
            graph["positions"] = graph["positions"].float()
        case "pointer":
            graph["edge_index"][0, 5] = len(graph["positions"])
        case "species":
            graph["species"][2] = 7
        case "missing":
            del graph["shifts"]
        case "moved":
            graph["positions"][0, 0] += 1e-6
    return graph


WRONG = {
    "nan": r"graph\['positions'\] is NaN or infinite at \(3, 1\)\. Check",
    "dtype": r"graph\['positions'\] is torch\.float32, the model was compiled for torch\.float64: convert",
    "pointer": r"graph\['edge_index'\] refers to number 14 \(at position 5\), but there are 14 rows of atoms",
    "species": r"graph\['species'\] refers to number 7 \(at position 2\), but there are 3 entries",
    "missing": r"missing graph\['shifts'\]\. Build",
}
"""What a user reads about each damage."""


def evaluate_damaged(damage: str, bad: list[int], training: bool = False) -> Any:
    """Evaluate a graph that is damaged on some ranks; afterwards a good one, which must work."""
    model, stock = compiled("Gnn", validate=False)
    stock.train(training)
    good = toys.random_graph(14, 1)
    problem = None
    try:
        model(damaged(good, damage) if dist.get_rank() in bad else good)
    except Exception as error:
        problem = error
    after = model(good)
    if problem is not None:
        raise problem
    return after


@pytest.mark.parametrize("damage", WRONG)
def test_a_bad_graph_on_all_ranks(damage: str) -> None:
    """Every rank says what is wrong with the graph."""
    for message in errors(run_ranks(2, evaluate_damaged, damage, [0, 1]), InputError):
        assert re.search(WRONG[damage], message), message


@pytest.mark.parametrize("damage", WRONG)
def test_a_bad_graph_on_one_rank(damage: str) -> None:
    """Every rank learns that ranks disagree, and what the one that refused its graph has to say."""
    for message in errors(run_ranks(2, evaluate_damaged, damage, [1]), RankError):
        assert re.search(r"Rank 1 refused its graph: .*" + WRONG[damage], message), message
        assert "Rank 0 refused" not in message


def test_a_missing_tensor_in_training() -> None:
    """Results that carry gradients take another path through the executor."""
    for message in errors(run_ranks(2, evaluate_damaged, "missing", [0, 1], True), InputError):
        assert re.search(WRONG["missing"], message), message


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_different_graphs_name_the_odd_rank(odd: int) -> None:
    """A position that differs by 1e-6 on one of three ranks: two agree, so the third is the odd one."""
    answers = run_ranks(3, evaluate_damaged, "moved", [odd])
    for rank, message in enumerate(errors(answers, RankError)):
        assert f"disagree on the graph: rank {odd} differs from the others (this is rank {rank})" in message


def compare_often() -> list[str]:
    model, _ = compiled("Gnn", validate=False)
    messages = []
    for seed in range(12):
        graph = toys.random_graph(14, seed)
        try:
            model(damaged(graph, "moved") if dist.get_rank() == 1 else graph)
        except RankError as error:
            messages.append(str(error).replace(f"(this is rank {dist.get_rank()})", ""))
    return messages


def test_two_ranks_tell_one_story() -> None:
    """Of two ranks neither is in the majority; both must still name the same one."""
    first, second = run_ranks(2, compare_often)
    assert len(first) == 12
    assert first == second


def skip_a_call() -> Any:
    model, _ = compiled("Gnn", validate=False)
    graphs = [toys.random_graph(14, seed) for seed in range(3)]
    for graph in graphs[dist.get_rank() :]:  # rank 1 starts with the second graph
        model(graph)
    return "done"


def test_ranks_out_of_step() -> None:
    """A rank that leaves out one structure is found at the first evaluation."""
    for message in errors(run_ranks(2, skip_a_call), RankError):
        assert "disagree on the graph" in message


class Scaled(toys.Gnn):
    """A model that takes a Python number from its graph: a constant of the captured program."""

    def energy(self, graph: Any, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, _ = super().energy(graph, vectors, lengths)
        return energy * graph["scale"], None


def evaluate_scaled(scales: list[float]) -> float:
    graph = toys.random_graph(14, 1)
    model = distcompile.compile(Scaled(), {**graph, "scale": 1.0})
    return float(model({**graph, "scale": scales[dist.get_rank()]})["energy"])


def test_numbers_of_the_graph_may_change() -> None:
    """Another number is another program; the same on all ranks, all capture it."""
    expected = 2.5 * float(toys.Gnn()(toys.random_graph(14, 1))["energy"])
    assert run_ranks(2, evaluate_scaled, [2.5, 2.5]) == pytest.approx([expected] * 2, rel=1e-12)


def test_different_numbers_are_an_error() -> None:
    """Ranks whose graphs differ in a Python number run different programs: without an error, silently wrong."""
    errors(run_ranks(2, evaluate_scaled, [2.0, 3.0]), RankError)


# ---- different programs


def compile_different() -> Any:
    return compiled(("Gnn", "Pair", "Gnn")[dist.get_rank()])


def test_different_programs() -> None:
    for message in errors(run_ranks(3, compile_different), RankError):
        assert "compiled different programs" in message


def compile_different_examples() -> Any:
    return distcompile.compile(toys.Gnn(), toys.random_graph(14, dist.get_rank()))


def test_different_examples() -> None:
    """The same program from two examples is found out when they are evaluated to check it."""
    for message in errors(run_ranks(2, compile_different_examples), RankError):
        assert "disagree on the graph" in message


def compile_different_weights(validate: bool) -> Any:
    graph = toys.random_graph(14, 1)
    model = toys.seeded(toys.Gnn(), seed=dist.get_rank())
    return distcompile.compile(model, graph, validate=validate)(graph)


def test_different_weights_fail_validation() -> None:
    """Ranks that drew their random weights apart: neither model is reproduced."""
    errors(run_ranks(2, compile_different_weights, True), distcompile.ValidationError, RankError)


def test_different_weights_are_an_error() -> None:
    errors(run_ranks(2, compile_different_weights, False), RankError)


def compile_too_small_on_one() -> Any:
    return distcompile.compile(toys.Gnn(), toys.random_graph(14 if dist.get_rank() == 0 else 2, 1))


def test_compiling_fails_on_one_rank() -> None:
    """A rank whose example cannot be captured must not leave the others waiting for its program."""
    errors(run_ranks(2, compile_too_small_on_one, timeout=15), distcompile.DistcompileError)


def evaluate_within_memory() -> Any:
    model, _ = compiled("Gnn", validate=False, memory=10**9)
    good = toys.random_graph(14, 1)
    return model(damaged(good, "nan") if dist.get_rank() == 1 else good)


def test_a_bad_graph_on_one_rank_with_a_memory_limit() -> None:
    for message in errors(run_ranks(2, evaluate_within_memory, timeout=15), RankError):
        assert "Rank 1 refused its graph" in message
