"""Any structure may come first: an atom, a pair, a crystal without angles; whatever the order, results are stock's."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
import toys
from adversaries import Toy
from processes import run_ranks
from torch import Tensor, nn
from toys import Graph, Result, ThreeBody, random_graph
from undividable import Given

import distcompile
from distcompile import InputError, LocalWorld, RankError
from distcompile.errors import NoIndexSpaceError
from distcompile.testing import check_model

ORDERS: dict[str, list[int]] = {
    "references first": [1, 2, 3, 12, 1, 20, 2],
    "a primitive cell first": [2, 2, 16, 2],
    "a triple first": [3, 30, 3, 1],
    "nothing first": [0, 9, 0],
}
"""Numbers of atoms of structures that one compiled model is given one after another."""


def check(compiled: Any, stock: nn.Module, graph: Graph) -> None:
    found, expected = compiled(graph), stock(graph)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["Pair", "Gnn", "Eam", "ThreeBody"])
def test_any_number_of_atoms_may_come_first(name: str, order: str, ranks: int) -> None:
    """The first structure that can be divided is compiled for; smaller ones before and after it are right, too."""
    model = getattr(toys, name)().eval()
    options: Any = {"Eam": {"half": True}, "ThreeBody": {"angles": True}}.get(name, {})
    first, *others = [random_graph(n, seed, **options) for seed, n in enumerate(ORDERS[order])]
    compiled = distcompile.compile(model, first, world=LocalWorld(ranks))
    for graph in (first, *others):
        check(compiled, model, graph)
    assert compiled.captures <= 2, "programs are shared as soon as they can be"
    assert all(row["owned"]["atoms"] >= 0 for row in compiled.stats(random_graph(25, 9, **options)))


def test_a_crystal_without_angles_before_and_after_one_with_them() -> None:
    """A list of no rows is of any shape and dtype: packages make it by another branch than the others."""
    model = ThreeBody().eval()
    full = random_graph(10, 1, angles=True)
    none = {**random_graph(6, 2, volume=200.0), "angles": torch.zeros(2, 0, dtype=torch.int64)}
    for shape, dtype in (((2, 0), torch.int64), ((0,), torch.float32), ((0, 2), torch.int32)):
        odd = {**none, "angles": torch.zeros(shape, dtype=dtype)}
        compiled = distcompile.compile(model, full, world=LocalWorld(2))
        for graph, like in ((full, full), (odd, none), (full, full)):
            found, expected = compiled(graph), model(like)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
        assert compiled.captures == 1


def test_a_list_that_is_not_empty_must_be_as_the_example() -> None:
    """Only a list of no rows has no form."""
    full = random_graph(10, 1, angles=True)
    compiled = distcompile.compile(ThreeBody().eval(), full, world=LocalWorld(2), validate=False)
    with pytest.raises(InputError, match="int32"):
        compiled({**full, "angles": full["angles"].int()})


class Nothing(nn.Module):
    """Reads no rows through anything: every operator is of all atoms at once."""

    def forward(self, graph: Graph) -> Result:
        x = graph["positions"].requires_grad_()
        energy = torch.logsumexp(-torch.pdist(x), 0)
        return {"energy": energy.detach(), "forces": -torch.autograd.grad(energy, x)[0]}


def test_a_model_without_anything_to_divide_runs_whole_and_says_so() -> None:
    """On every rank, as many calls as there are; it is tried once."""
    with pytest.warns(UserWarning, match="runs whole on every rank"):
        compiled = distcompile.compile(Nothing(), random_graph(70), world=LocalWorld(2))
    for n in (70, 30, 90):
        check(compiled, Nothing(), random_graph(n, n))
    assert compiled.captures == 0
    assert compiled.stats(random_graph(30)) == []
    assert "No index space" in compiled.explain()
    with pytest.raises(NoIndexSpaceError, match="No index space"):
        _ = compiled.program


def test_a_size_that_an_operator_took_for_fixed_is_named() -> None:
    """The product under ``jacrev`` asks for numbers: the stock model runs, and why is said."""

    def products(model: Toy, graph: Graph, h: Tensor, w: Tensor, lengths: Tensor) -> Tensor:
        return h + torch.vmap(torch.func.jacrev(lambda x: x.prod()))(w).sum()

    model = Given(products).eval()
    with pytest.warns(UserWarning, match="runs whole on every rank"):
        compiled = distcompile.compile(model, random_graph(10), world=LocalWorld(2))
    assert re.search(r"took for fixed: \d+ of .*torch.func", compiled.explain())
    torch.testing.assert_close(compiled(random_graph(17, 1))["forces"], model(random_graph(17, 1))["forces"])


def test_a_few_atoms_are_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distcompile.compile(toys.Gnn().eval(), random_graph(1), world=LocalWorld(2))


def test_gradients_taken_outside_reach_the_inputs_of_a_few_atoms() -> None:
    """What the stock model runs on is what the caller differentiates by."""

    class Energy(nn.Module):
        def forward(self, graph: Graph) -> Tensor:
            i, j = graph["edge_index"]
            return torch.exp(-(graph["positions"][i] - graph["positions"][j]).norm(dim=1)).sum()

    pair = {"edge_index": torch.tensor([[0, 1], [1, 0]]), "positions": torch.rand(2, 3, dtype=torch.float64)}
    x = pair["positions"].clone().requires_grad_()
    compiled = distcompile.compile(Energy(), {**pair, "positions": x}, world=LocalWorld(2))
    (found,) = torch.autograd.grad(compiled({**pair, "positions": x}), x)
    (expected,) = torch.autograd.grad(Energy()({**pair, "positions": x}), x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def one_atom_here_ten_there() -> Any:
    import torch.distributed as dist

    compiled = distcompile.compile(toys.Gnn().eval(), random_graph(1))
    same = compiled(random_graph(1))["energy"]
    return same, compiled(random_graph(1, dist.get_rank()))


def test_ranks_that_are_given_different_atoms_are_told() -> None:
    """Also where each runs the stock model by itself."""
    for answer in run_ranks(2, one_atom_here_ten_there):
        assert isinstance(answer, RankError)
        assert "graph" in str(answer)


@pytest.mark.parametrize("sizes", [(2, 20, 1), (1, 0, 2)])
def test_the_conformance_kit_takes_any_structure_first(sizes: tuple[int, ...]) -> None:
    """What it reports of the program is that of the first graph in which there is something to divide."""
    first, *others = [random_graph(n, seed) for seed, n in enumerate(sizes)]
    report = check_model(toys.Pair().eval(), first, others, (1, 3), relative=1e-10)
    divided = max(sizes) > 2
    assert report.ok
    assert report.spaces == (("atoms", "edges") if divided else ())
    assert (report.operators > 0) == divided
    assert report.captures == divided, "once for all numbers of ranks"
