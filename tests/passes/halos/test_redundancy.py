"""No row is computed twice by accident: over all ranks, every operator computes each row of its space once.

Halo rows are received, or padded in front of a reduction. What is computed on them, since it would cost more to send,
stands in a space of its own, "halo of atoms", and nowhere else. Methods that give ranks ghost atoms and let them
recompute all of a model compute a multiple of the rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from programs import MODELS, compiled
from torch import Tensor, fx

from distcompile import DistributedModel
from distcompile.ir import META, Halo, Placement, Space
from distcompile.rules.indexing import accesses
from distcompile.runtime.division.shard import shard_inputs
from distcompile.runtime.operators.halo import halo_exchange, halo_join, halo_reduce

aten = torch.ops.aten


class Recorder(fx.Interpreter):
    """Runs one rank's graph and notes how many rows of each space every node has."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.rows: dict[tuple[str, str], int] = {}
        """(node, space or space+halo) -> rows, on this rank."""

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        places = node.meta.get(META)
        values = result if isinstance(result, list | tuple) else [result]
        for place in places if isinstance(places, tuple) else (places,):
            for value in values:
                if isinstance(place, Placement) and isinstance(value, Tensor) and len(place.dims) == value.dim():
                    self._note(node, place, value)
        return result

    def _note(self, node: fx.Node, place: Placement, value: Tensor) -> None:
        for dim, n in zip(place.dims, value.shape, strict=True):
            for factor in dim:
                if not isinstance(factor, int):
                    others = [f for f in dim if isinstance(f, int)]
                    self.rows[node.name, str(factor)] = n // int(torch.tensor([1, *others]).prod())


def run_recorded(model: DistributedModel, graph: Any) -> tuple[list[Recorder], Any]:
    """Run the rewritten graph on every rank; return what each recorded, and the division of rows."""
    args = graph if isinstance(graph, tuple) else (graph,)
    executor = model.executor_for(*args)
    prepared = executor.prepare(model.flatten(args)[0])
    layout = executor.layout(prepared)
    spaces = {s.symbol: s for s in model.program.row_spaces}

    def work(comm: Any) -> Recorder:
        recorder = Recorder(model.graph_module)
        plans = layout.division.for_rank(comm.rank)
        given = shard_inputs(
            executor.inputs, executor._shapes, prepared.values, spaces, plans, layout.sizes, layout.orders
        )
        with torch.no_grad():
            recorder.run(*given)
        return recorder

    return model.world.run(work), layout


@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_computed_once(name: str) -> None:
    """Summed over 3 ranks, each node has N rows of atoms, E of edges, U of bonds, A of angles, and not one more."""
    model, graph, _ = compiled(name)
    ranks, layout = run_recorded(model, graph)
    assert len(ranks) == 3
    spaces = [s.name for s in model.program.spaces if s.sharded]
    assert set(spaces) == MODELS[name].spaces

    halo = {s: sum(layout.division.halo_counts(s)) for s in spaces}
    assert halo["atoms"] > 0, "the ranks have something to exchange"
    assert all(set(r.rows) == set(ranks[0].rows) for r in ranks)
    total: dict[tuple[str, str], int] = defaultdict(int)
    for recorder in ranks:
        for key, rows in recorder.rows.items():
            total[key] += rows
    checked: dict[str, int] = defaultdict(int)
    for (node, space), rows in total.items():
        if space.startswith("halo of "):
            assert rows == halo[space[8:]], f"{node} over {space}"
        elif space.endswith("+halo"):
            assert rows == layout.sizes[space[:-5]] + halo[space[:-5]], f"{node} over {space}"
        else:
            assert rows == layout.sizes[space], f"{node} over {space}"
            checked[space] += 1
    assert all(checked[s] >= 5 for s in spaces), dict(checked)


@pytest.mark.parametrize("name", MODELS)
def test_halo_rows_are_received_or_padded_and_never_computed_on(name: str) -> None:
    """A value with halo rows is exchanged or joined and read through pointers, or padded, added to and reduced."""
    program = compiled(name)[0].program
    found: dict[str, int] = defaultdict(int)
    for node in program.graph.graph.nodes:
        place = node.meta.get(META)
        if not isinstance(place, Placement) or not any(isinstance(f, Halo) for dim in place.dims for f in dim):
            continue
        if node.target in (halo_exchange, halo_join):
            found["exchanged"] += 1
            for user in node.users:
                assert all(a.kind == "gather" for a in accesses(user)), f"{user} computes on halo rows of {node}"
                assert any(a.table is node for a in accesses(user))
        elif node.target is aten.constant_pad_nd.default:
            found["padded"] += 1
            for user in node.users:
                assert [a.kind for a in accesses(user) if a.table is node] == ["scatter"], f"{user} reads padding"
        else:
            completed = [u for u in node.users if u.target in (halo_reduce, aten.slice.Tensor)]
            found["reduced"] += bool(completed)
            assert [a.kind for a in accesses(node)][:1] == ["scatter"], f"{node} has halo rows"
            assert all(u in completed or accesses(u) for u in node.users)
    assert found["exchanged"] >= 1
    assert found["padded"] >= 1
    assert found["reduced"] == found["padded"]  # several sums may go into one table
    assert all(isinstance(f, Space | Halo | int) for n in program.graph.graph.nodes for f in _factors(n))


def _factors(node: fx.Node) -> list[Any]:
    place = node.meta.get(META)
    return [f for dim in place.dims for f in dim] if isinstance(place, Placement) else []
