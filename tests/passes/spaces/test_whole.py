"""What no rule divides runs whole on every rank: exact on any number of ranks, said, and counted."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import pytest
import torch
from adversaries import F, Toy, add_to, with_bonds
from divisions import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from printed import holds, operators, programs
from processes import run_ranks
from torch import Tensor, nn
from toys import Graph, random_graph
from undividable import UNDIVIDABLE, Adjacency, Given, with_matrix

import distcompile
from distcompile import DistributedModel, InputError, LocalWorld, UnsupportedOp
from distcompile.runtime.operators.whole import gather_rows, scatter_rows
from distcompile.runtime.world import Communicator
from distcompile.testing import check_model

EXAMPLE, *OTHERS = graphs = [random_graph(n, seed) for n, seed in ((10, 0), (17, 1), (3, 2), (24, 3))]


@functools.cache
def compiled(name: str) -> tuple[nn.Module, DistributedModel, list[str]]:
    """A model in training mode, its program on one rank, and what was said when it was compiled."""
    model = Given(UNDIVIDABLE[name][0]).train()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        program = distcompile.compile(model, EXAMPLE, world=LocalWorld(1), validate=False)
    return model, program, [str(w.message) for w in said]


def in_between(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A sum along all edges, of what edges compute, and made use of edge by edge."""
    return torch.zeros_like(x).index_add(0, q, x[p].sin().cumsum(0) * x[p])


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_rows_of_all_ranks_are_gathered_and_own_rows_are_taken() -> None:
    """The smallest stretch: one operator."""
    text = operators(programs(in_between)["place"])
    holds(
        re.sub(r"\bs\d+\b", "all edges", text),
        """
           %2: f64[edges, 3] = sin(%1)
        >> %3: f64[all edges, 3] = gather_rows(%2, edges_order, edges_counts, 0)
           %4: f64[all edges, 3] = cumsum(%3, 0)
           %5: f64[edges, 3] = index_select(%4, 0, edges_owned)
           %6: f64[edges, 3] = mul.Tensor(%5, %1)
        """,
    )


@pytest.mark.parametrize("name", UNDIVIDABLE)
@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_every_output_is_exact_on_any_number_of_ranks(name: str) -> None:
    """Energy, forces and stress of the stock model, to 1e-12, by one program for graphs of 3 to 24 atoms."""
    model = Given(UNDIVIDABLE[name][0]).eval()
    fits = [g for g in OTHERS if len(g["positions"]) > 3 or name not in ("the largest three", "a batch norm")]
    report = check_model(model, EXAMPLE, fits, ranks=(1, 2, 3, 5), relative=2e-12)
    assert report.captures == 1
    assert report.spaces[:2] == ("atoms", "edges")


@pytest.mark.filterwarnings("ignore:.*run on all rows")
@pytest.mark.parametrize("ranks", [1, 2])
def test_of_no_atoms_a_maximum_among_all_is_of_none(ranks: int) -> None:
    """Attention among no atoms: torch has no largest of no rows, so the rows of which there are some decide."""
    model, program, _ = compiled("attention of all to all")
    nothing = random_graph(0, 0)
    found, expected = program.on(LocalWorld(ranks))(nothing), model(nothing)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("name", sorted(UNDIVIDABLE.keys() - {"all distances"}))  # cdist has no second derivative
def test_gradients_taken_outside_count_a_whole_stretch_once(name: str) -> None:
    """Of weights, for a loss on forces, and of positions: a stretch that every rank runs is differentiated once."""
    model, program, _ = compiled(name)
    parameters = list(model.parameters())
    expected = derivatives(model, OTHERS[0], parameters)
    for n in (2, 3):
        for a, b in zip(derivatives(program.on(LocalWorld(n)), OTHERS[0], parameters), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, float(b.abs().max())))


def derivatives(model: Any, graph: dict[str, Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    result = model(graph)
    loss = (result["forces"] ** 2).sum() + result["energy"] ** 2 + result["stress"].sum()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("name", UNDIVIDABLE)
def test_it_is_said_with_the_line_and_what_it_costs(name: str) -> None:
    """One warning for a program; in `explain` the operator, why, the model's line and the work."""
    _, program, said = compiled(name)
    (message,) = [m for m in said if "on all rows on every rank" in m]
    text = program.explain()
    part = text[text.index("Whole on every rank") :]
    assert UNDIVIDABLE[name][1] in part
    assert "undividable.py" in part
    assert "bytes moved" in part
    assert "explain()" in message


def test_a_matrix_of_atoms_by_atoms_that_is_given_is_given_whole() -> None:
    """Every rank is given all of it; nothing of it crosses."""
    model = Adjacency().eval()
    with pytest.warns(UserWarning, match="run on all rows"):
        report = check_model(model, with_matrix(EXAMPLE), [with_matrix(g) for g in OTHERS], ranks=(1, 2, 3, 5))
    assert report.captures == 1


@pytest.mark.filterwarnings("ignore:.*run on all rows")
class HalfAsMany(Toy):
    """A table of half as many rows as there are edges, which is another list's length, as the model checks."""

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        n_bonds = len(sender) // 2
        edge = graph["edge_of_bond"] + torch.zeros(n_bonds, dtype=torch.int64)
        bonds = w.new_zeros(n_bonds, F).index_add(0, graph["bond_of_edge"], w * h[sender])
        bonds = bonds * self.mix(w[edge])
        return h + add_to(bonds[graph["bond_of_edge"]] * w, receiver, h)


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_values_of_all_rows_are_not_added_where_a_rank_s_own_rows_point() -> None:
    """Nor are they one value for all rows: a gradient for each bond, added to the edge that it was read from."""
    first, *others = with_bonds()
    assert check_model(HalfAsMany().eval(), first, others, ranks=(1, 2, 3), relative=2e-12).captures == 1


def test_memory_of_all_rows_is_counted() -> None:
    """A matrix of atoms by atoms is as large on four ranks as on one, and a graph that it does not fit is refused."""
    name, large = "all pairs by a product", random_graph(400, 5)
    _, program, _ = compiled(name)
    predicted = [max(row["peak_memory"] for row in program.on(LocalWorld(n)).stats(large)) for n in (1, 4)]
    assert min(predicted) > 400 * 400 * 8
    divided = distcompile.compile(Given(lambda m, g, h, w, r: h).eval(), EXAMPLE, world=LocalWorld(1), validate=False)
    assert max(row["peak_memory"] for row in divided.on(LocalWorld(4)).stats(large)) < 400 * 400 * 8 / 2
    bounded = distcompile.compile(
        Given(UNDIVIDABLE[name][0]).eval(), EXAMPLE, world=LocalWorld(4), memory=10**6, validate=False
    )
    assert bounded(OTHERS[0])["forces"].shape == (17, 3)
    with pytest.raises(InputError, match="memory=1000000"):
        bounded(large)


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_rows_that_cross_are_counted() -> None:
    """A rank receives the rows of all others, as many bytes as `stats` says."""
    _, program, _ = compiled("a running sum over atoms")
    rows = program.on(LocalWorld(3)).stats(OTHERS[0])
    more = {row["rank"]: row["bytes"] for row in rows}
    assert all(more[r["rank"]] >= (17 - r["owned"]["atoms"]) * 6 * 8 for r in rows)
    assert "gather_rows   atoms         48 bytes/row" in program.explain()


def test_random_numbers_that_every_rank_would_draw_for_itself_are_refused() -> None:
    """Each rank would go on with others."""
    model = Given(lambda m, g, h, w, r: torch.rand(len(h), len(h), dtype=h.dtype) @ h)
    with pytest.raises(UnsupportedOp, match="random numbers"):
        distcompile.compile(model, EXAMPLE, validate=False)


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_generated_code_runs_the_rest() -> None:
    """Stretches that run whole stay operators of PyTorch; around them code is generated as ever."""
    model = Given(UNDIVIDABLE["a running sum over edges"][0]).eval()
    program = distcompile.compile(model, EXAMPLE, world=LocalWorld(2), lowering="inductor", validate=False)
    for graph in graphs:
        for key, value in model(graph).items():
            torch.testing.assert_close(program(graph)[key], value.detach(), rtol=1e-10, atol=1e-12)


def evaluate(names: list[str]) -> dict[str, list[dict[str, Tensor]]]:
    found = {}
    for name in names:
        program = distcompile.compile(Given(UNDIVIDABLE[name][0]).train(), EXAMPLE, validate=False)
        parameters = list(program._module.parameters())  # type: ignore[union-attr]
        found[name] = [{k: v.detach() for k, v in program(g).items()} for g in OTHERS]
        found[name].append(dict(enumerate(derivatives(program, OTHERS[0], parameters))))  # type: ignore[arg-type]
    return found


@pytest.mark.filterwarnings("ignore:.*run on all rows")
def test_processes_equal_the_stock_model() -> None:
    """Over gloo, with gradients of weights; also where a rank has no atom."""
    names = ["a running sum over edges", "a system of equations", "a matrix that edges fill"]
    for answer in run_ranks(3, evaluate, names):
        assert isinstance(answer, dict), answer
        for name in names:
            model = Given(UNDIVIDABLE[name][0]).train()
            *results, gradients = answer[name]
            for graph, result in zip(OTHERS, results, strict=True):
                for key, value in model(graph).items():
                    torch.testing.assert_close(result[key], value.detach(), rtol=1e-10, atol=1e-11)
            expected = derivatives(model, OTHERS[0], list(model.parameters()))
            for i, value in enumerate(expected):
                torch.testing.assert_close(gradients[i], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parts", (1, 2, 3, 4))
@given(st.data(), st.sampled_from([0, 1, 2]))
@settings(max_examples=20)
def test_gathering_and_scattering_are_adjoint(parts: int, data: st.DataObject, dim: int) -> None:
    """<gather_rows(x), y> = <x, scatter_rows(y)>, summed over ranks; gathered rows are in the graph's order."""
    division = data.draw(cases(parts)).divide()
    order, counts = division.order("edges"), torch.tensor(division.counts("edges"))
    everything = torch.randn(len(order), 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def work(comm: Communicator) -> tuple[Tensor, Tensor]:
        start = int(counts[: comm.rank].sum())
        mine = everything[order[start : start + int(counts[comm.rank])]].movedim(0, dim)
        whole = gather_rows(mine, order, counts, dim)
        torch.testing.assert_close(whole, everything.movedim(0, dim), rtol=0, atol=0)
        y = torch.randn(whole.shape, generator=torch.Generator().manual_seed(10 + comm.rank), dtype=torch.float64)
        return (whole * y).sum(), (mine * scatter_rows(y, order, counts, dim)).sum()

    left, right = (sum(side) for side in zip(*LocalWorld(parts).run(work), strict=True))
    assert abs(left - right) <= 1e-12 * max(1.0, abs(left))
