"""Groups of regions that run a stretch of atoms at a time, with the rows that follow them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import toys
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld
from distcompile.ir import Tiled
from distcompile.ir.tree import flatten
from distcompile.passes.schedule.tile import HOLD
from distcompile.predict import in_step as predicted
from distcompile.predict.account import peak_bytes
from distcompile.predict.fit import Fit
from distcompile.runtime.division.plan import Division
from distcompile.runtime.execution import in_step, tiles
from distcompile.runtime.execution.grouping import grouped
from distcompile.runtime.execution.in_step import InStep


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups run in step even if that does not pay."""
    monkeypatch.setattr(predicted, "NEAR", 0.0)


@pytest.fixture
def stretches(always: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of stretches of each group that ran in step."""
    found: list[int] = []
    real = in_step.in_order

    def noted(count: int, threads: int, work: Any, take: Any) -> None:
        found.append(count)
        real(count, threads, work, take)

    monkeypatch.setattr(tiles, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(in_step, "in_order", noted)
    return found


def largest_difference(one: Any, two: Any) -> float:
    """Between all tensors of two results, relative to the largest value of each."""
    pairs = zip(flatten(one)[0], flatten(two)[0], strict=True)
    return max(float((a.tensor - b.tensor).abs().max() / b.tensor.abs().max().clamp(min=1e-6)) for a, b in pairs)


def compiled(model: nn.Module, lowering: Any = "eager", **options: Any) -> distcompile.DistributedModel:
    example = toys.random_graph(14, 1, **options)
    return distcompile.compile(model, example, world=LocalWorld(1), validate=False, lowering=lowering)


@pytest.mark.parametrize("lowering", ["eager", "kernels"])
@pytest.mark.parametrize("name", ["Gnn", "ThreeBody"])
@pytest.mark.parametrize("threads", [1, 3])
def test_stretches_give_what_the_stock_model_gives(
    name: str, lowering: str, threads: int, stretches: list[int]
) -> None:
    """Edges come in any order; the last stretch is shorter than the others."""
    model, options = getattr(toys, name)().eval(), {"angles": name == "ThreeBody"}
    dmodel, graph = compiled(model, lowering, **options), toys.random_graph(101, 2, **options)
    if lowering == "eager":
        for region in dmodel.program.tiled.children():
            region.block = 50
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = dmodel(graph)
    finally:
        torch.set_num_threads(before)
    assert max(stretches) >= (3 if lowering == "eager" else threads)
    assert largest_difference(found, model(graph)) < 1e-11


@pytest.mark.parametrize("atoms", [1, 2, 17])
def test_few_atoms_and_no_edges(atoms: int) -> None:
    """Atoms without a neighbour have rows in no other space; where a space has no rows, regions run one by one."""
    model = toys.Gnn().eval()
    dmodel = compiled(model)
    graph = toys.random_graph(atoms, 3)
    assert largest_difference(dmodel(graph), model(graph)) < 1e-10
    alone = {k: v[:0] if k in ("shifts",) else v for k, v in graph.items()}
    alone["edge_index"] = graph["edge_index"][:, :0]
    assert largest_difference(dmodel(alone), model(alone)) < 1e-12


class Wide(nn.Module):
    """Sums wide messages over edges, and needs no more of the sums than two numbers an atom."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(512, 2, dtype=torch.float64)

    def forward(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        sender, receiver = graph["edge_index"]
        x = graph["positions"].sin()
        messages = (x[sender] - x[receiver]).repeat(1, 171)[:, :512]
        sums = x.new_zeros(len(x), 512).index_add(0, receiver, messages)
        return {"y": self.out(sums).tanh(), "total": x[sender].sum(0)}


def test_what_is_passed_does_not_exist_for_all_rows() -> None:
    """The sums of all atoms are 4 kB an atom; what is predicted, and counted at run time, is a small part of that."""
    dmodel = compiled(Wide().eval())
    rows = {"atoms": 10**6, "edges": 10**7, "graphs": 1}
    program = dmodel.program
    groups = [m for m in grouped(program).children() if isinstance(m, InStep)]
    assert len(groups) == 1
    assert sum(isinstance(more, in_step.Sums) for m in groups[0].members for more in m.more) == 1
    sizes = {s.name: rows.get(s.name, 1) for s in program.spaces}
    assert peak_bytes(program, sizes, dict.fromkeys(sizes, 0)) < 10**6 * 1000
    assert "in step with the one before" in dmodel.explain()


def test_ranks_that_wait_for_messages_run_regions_one_by_one() -> None:
    """Several ranks overlap messages with rows of edges; they take the same result."""
    model, graph = Wide().eval(), toys.random_graph(60, 2)
    two = distcompile.compile(model, toys.random_graph(14, 1), world=LocalWorld(2), validate=False, lowering="eager")
    assert largest_difference(two(graph), model(graph)) < 1e-12
    assert "in step" not in two.explain()


def test_in_step_where_it_pays_or_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What angles add to edges of other atoms is kept, and is more than what is passed on; not so without angles."""
    fits = []
    for name in ("Gnn", "ThreeBody"):
        dmodel = compiled(getattr(toys, name)().eval(), angles=name == "ThreeBody")
        fit = dmodel._executors[-1].fit
        assert isinstance(fit, Fit)
        fits.append(fit)
    assert [predicted.pays(fit.tiling((HOLD, True))) for fit in fits] == [True, False]

    def needs(program: Tiled, sizes: dict[str, int], division: Division) -> list[int]:
        return [100 if any(r.spec.group is not None for r in program.tiled.children()) else 200]

    monkeypatch.setattr("distcompile.predict.fit.needs", needs)
    one, two = [cast(Division, SimpleNamespace(parts=n)) for n in (1, 2)]
    chosen = [fit.choose({}, one, None) for fit in fits]
    assert chosen == [((HOLD, True), 100), ((HOLD, False), 200)]
    assert fits[1].choose({}, one, 180) == ((HOLD, True), 100)
    assert fits[1].choose({}, two, 180)[1] == 200
