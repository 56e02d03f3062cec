"""The plan: who owns which rows, who reads which, and who sends what to whom.

Nothing here depends on a good partition: half of the cases have a random one.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from divisions import ANGLES, ATOMS, EDGES, POINTERS, SPACES, Case, cases
from hypothesis import given, settings
from toys import Gnn, random_graph

import distcompile
from distcompile import LocalWorld
from distcompile.ir import Input, Placement
from distcompile.runtime.division.shard import gather_output, local_numbers, shard_inputs
from distcompile.runtime.operators.halo import halo_exchange
from distcompile.runtime.world import Communicator


def chain(n_atoms: int, parts: int, ranks: list[int] | None = None) -> Case:
    """Atoms in a row, edges to the left neighbour."""
    values = {
        "sender": torch.arange(n_atoms - 1),
        "receiver": torch.arange(1, n_atoms),
        "itself": torch.arange(n_atoms),
    }
    sizes = {"atoms": n_atoms, "edges": n_atoms - 1}
    positions = torch.arange(n_atoms, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    given_ranks = None if ranks is None else torch.tensor(ranks)
    return Case(sizes, values, (positions,), parts, (ATOMS, EDGES), given_ranks)


@given(cases())
def test_every_row_is_owned_once(case: Case) -> None:
    division = case.divide()
    plans = [division.for_rank(r) for r in range(case.parts)]
    for space in SPACES:
        owned = torch.cat([p[space.name].owned for p in plans])
        assert owned.sort().values.tolist() == list(range(case.sizes[space.name]))
        assert division.counts(space.name) == [len(p[space.name].owned) for p in plans]
        assert torch.equal(owned, division.order(space.name))


@given(cases())
def test_rows_whose_pointers_stay_come_first(case: Case) -> None:
    """Interior rows, then the others, each by place; no pointer of an interior row leaves, one of each other does."""
    division = case.divide()
    for rank in range(case.parts):
        for space in SPACES:
            plan = division.for_rank(rank)[space.name]
            away = torch.zeros(case.sizes[space.name], dtype=torch.bool)
            for p in [p for p in POINTERS if p.source == space and p.leaves_rank]:
                away |= (division.ranks[p.target.name][p.by_rows(case.values[p.name])] != rank).any(1)
            inside, outside = plan.owned[: plan.interior], plan.owned[plan.interior :]
            assert not away[inside].any() and away[outside].all()
            places = division.places[space.name]
            assert all(a < b for rows in (inside, outside) for a, b in pairwise(places[rows].tolist()))
            for p in [p for p in POINTERS if p.source == space and p.owner]:
                owners = division.places[p.target.name][p.by_rows(case.values[p.name])[:, 0]]
                assert all(a <= b for a, b in pairwise(owners[places.argsort()].tolist()))


@given(cases())
def test_rows_follow_their_owner_pointer(case: Case) -> None:
    """An edge lives where its receiver does, an angle where its first edge does: these reads stay on the rank."""
    division = case.divide()
    atoms, edges, angles = (division.ranks[s.name] for s in (ATOMS, EDGES, ANGLES))
    assert torch.equal(edges, atoms[case.values["receiver"]])
    assert torch.equal(angles, edges[case.values["first"]])


@given(cases())
def test_ranks_agree_on_who_sends_what(case: Case) -> None:
    """What rank r sends to q is what q receives from r; nobody sends to itself."""
    division = case.divide()
    for space in SPACES:
        plans = [division.for_rank(r)[space.name] for r in range(case.parts)]
        send, receive = torch.stack([p.splits for p in plans]).unbind(1)
        assert torch.equal(send, receive.T)
        assert not send.diagonal().any()
        assert [len(p.send_rows) for p in plans] == send.sum(1).tolist()
        assert [len(p.halo) for p in plans] == receive.sum(1).tolist() == division.halo_counts(space.name)


@given(cases())
def test_the_halo_is_what_is_read_and_not_owned(case: Case) -> None:
    """Each row that a rank reads from others comes once, and no row comes that it does not read."""
    division = case.divide()
    for space in SPACES:
        owners = division.ranks[space.name].tolist()
        away = {(reader, row) for reader, row in case.readers(space, division) if owners[row] != reader}
        halos = [(r, row) for r in range(case.parts) for row in division.for_rank(r)[space.name].halo.tolist()]
        assert len(halos) == len(set(halos))
        assert set(halos) == away


@given(cases())
@settings(max_examples=50)
def test_an_exchange_brings_the_planned_rows(case: Case) -> None:
    """Global row numbers, exchanged as data, arrive as `SpacePlan.halo` says."""
    division = case.divide()

    def work(comm: Communicator) -> None:
        for name, p in division.for_rank(comm.rank).items():
            rows = halo_exchange(p.owned, p.send_rows, p.splits, len(p.halo), 0)
            assert rows.tolist() == [*p.owned.tolist(), *p.halo.tolist()], f"{name} of rank {comm.rank}"

    LocalWorld(case.parts).run(work)


@given(cases())
def test_local_pointers_point_at_the_same_rows(case: Case) -> None:
    """Renumbered, a pointer stays within owned and halo rows (an owner pointer within owned ones) of its target."""
    division = case.divide()
    for rank in range(case.parts):
        plans = division.for_rank(rank)
        for pointer in POINTERS:
            target, rows = plans[pointer.target.name], plans[pointer.source.name].owned
            local = local_numbers(target, case.sizes[pointer.target.name])[case.values[pointer.name][rows]]
            limit = len(target.owned) + (len(target.halo) if pointer.leaves_rank else 0)
            assert not local.numel() or (local.min() >= 0 and local.max() < limit), pointer.name
            assert torch.equal(torch.cat([target.owned, target.halo])[local], case.values[pointer.name][rows])


@given(cases())
@settings(max_examples=50)
def test_sharded_rows_gather_to_the_whole(case: Case) -> None:
    """Cutting rows along any dimension and gathering them again changes nothing, on every rank."""
    division = case.divide()
    n = case.sizes["edges"]
    value = torch.arange(2 * n * 3, dtype=torch.float64).reshape(2, n, 3)
    given_input = Input("value", "rows", 0)
    shape = (2, EDGES.symbol, 3)
    orders = {s.name: (division.order(s.name), division.counts(s.name)) for s in SPACES}

    def work(comm: Communicator) -> None:
        plans = division.for_rank(comm.rank)
        (local,) = shard_inputs([given_input], [shape], [value], {s.symbol: s for s in SPACES}, plans, case.sizes, {})
        assert local.shape == (2, len(plans["edges"].owned), 3)
        whole = gather_output(local, Placement(((), (EDGES,), ())), orders, comm)
        assert torch.equal(whole, value)
        # A dimension that counts rows and components together, rows first, as flattened results do.
        flat = gather_output(local.reshape(2, -1), Placement(((), (EDGES, 3))), orders, comm)
        assert torch.equal(flat, value.reshape(2, -1))

    LocalWorld(case.parts).run(work)


def test_more_ranks_than_atoms() -> None:
    """Three atoms on five ranks: an atom a rank, two ranks with nothing, and each reads its left neighbour."""
    division = chain(3, 5).divide()
    assert division.counts("atoms") == [1, 1, 1, 0, 0]
    assert division.counts("edges") == [0, 1, 1, 0, 0]
    assert division.halo_counts("atoms") == [0, 1, 1, 0, 0]


def test_one_rank_reads_nothing_from_others() -> None:
    division = chain(6, 1).divide()
    assert division.counts("atoms") == [6]
    assert (division.halo_counts("atoms"), division.halo_counts("edges")) == ([0], [0])


@pytest.mark.parametrize("parts", [2, 3])
def test_a_chain_is_cut_where_it_is_shortest(parts: int) -> None:
    """Twelve atoms in a row have one halo row per cut."""
    division = chain(12, parts).divide()
    assert division.counts("atoms") == [12 // parts] * parts
    assert sum(division.halo_counts("atoms")) == parts - 1


def test_a_rank_may_own_nothing_between_others() -> None:
    """A partition that skips a rank leaves it with empty plans that fit those of the others."""
    division = chain(4, 3, ranks=[0, 0, 2, 2]).divide()
    empty = division.for_rank(1)["atoms"]
    assert (len(empty.owned), len(empty.halo), len(empty.send_rows)) == (0, 0, 0)
    assert empty.splits.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert division.for_rank(2)["atoms"].splits.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert division.for_rank(2)["atoms"].halo.tolist() == [1]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rows", [(0, 0, 0), (5, 0, 0), (5, 4, 0)])
def test_spaces_without_rows(rows: tuple[int, int, int], parts: int) -> None:
    """No atoms, isolated atoms, no angles: ordinary graphs, for all ranks and not for some only."""
    n_atoms, n_edges, n_angles = rows
    nothing = torch.zeros(n_angles, dtype=torch.int64)
    values = {
        "sender": torch.arange(n_edges),
        "receiver": torch.arange(n_edges),
        "first": nothing,
        "second": nothing,
        "ends": nothing.reshape(0, 2),
        "itself": torch.arange(n_atoms),
    }
    sizes = {"atoms": n_atoms, "edges": n_edges, "angles": n_angles}
    division = Case(sizes, values, (torch.rand(n_atoms, 3, dtype=torch.float64),), parts).divide()
    assert {s.name: sum(division.counts(s.name)) for s in SPACES} == sizes
    assert all(sum(division.halo_counts(s.name)) == 0 for s in SPACES)


@pytest.fixture(scope="module")
def compiled() -> distcompile.DistributedModel:
    return distcompile.compile(Gnn().eval(), random_graph(14, 1), validate=False)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("n_atoms", [0, 1, 5])
def test_a_model_takes_graphs_without_edges(compiled: distcompile.DistributedModel, n_atoms: int, parts: int) -> None:
    """Isolated atoms (a gas, the first step of an energy of atomisation) and no atoms at all."""
    graph = random_graph(n_atoms, 1, volume=1e6)
    assert graph["edge_index"].shape == (2, 0)
    found, stock = compiled.on(LocalWorld(parts))(graph), Gnn()(graph)
    for name in stock:
        torch.testing.assert_close(found[name], stock[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("n_atoms", [1, 2, 4])
def test_a_model_takes_fewer_atoms_than_ranks(compiled: distcompile.DistributedModel, n_atoms: int, parts: int) -> None:
    """Atoms in a cell smaller than the cutoff read their own images; ranks without atoms take part all the same."""
    graph = random_graph(n_atoms, 1, volume=4.0)
    assert bool((graph["edge_index"][0] == graph["edge_index"][1]).any())
    model = compiled.on(LocalWorld(parts))
    assert [row["owned"]["atoms"] for row in model.stats(graph)].count(0) == max(0, parts - n_atoms)
    found, stock = model(graph), Gnn()(graph)
    assert bool(stock["stress"].any())
    for name in stock:
        torch.testing.assert_close(found[name], stock[name], rtol=1e-12, atol=1e-12)


def test_atoms_stay_on_their_rank_from_step_to_step(compiled: distcompile.DistributedModel) -> None:
    """Another neighbour list is no reason to move atoms; nor is a graph that was only asked about by one."""
    model = compiled.on(LocalWorld(3))
    (executor,) = model._executors
    graph, moved, other = random_graph(60, 1), random_graph(60, 1, cutoff=2.9), random_graph(60, 2)
    assert graph["edge_index"].shape != moved["edge_index"].shape

    def ranks(given: dict[str, torch.Tensor]) -> list[int]:
        leaves, _ = model.flatten((given,))
        return executor.layout(executor.prepare(leaves)).division.ranks["atoms"].tolist()

    model(graph)
    before = ranks(graph)
    model.stats(other)
    assert ranks(moved) == before
    assert ranks(other) != before
    assert ranks(graph) == before
