"""Partitions: every atom on a rank that exists, work in balance, and of two candidates the better one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import random_graph

from distcompile.runtime.partition import Partition, bisect, metis, partition


def loads(ranks: Tensor, work: Tensor, parts: int) -> Tensor:
    """Work of each rank."""
    return torch.zeros(parts, dtype=work.dtype).index_add_(0, ranks, work)


def score(ranks: Tensor, pairs: Tensor, work: Tensor, parts: int) -> float:
    """The documented score, counted one pair at a time."""
    halo = {(int(ranks[two]), one) for one, two in pairs.T.tolist() if ranks[one] != ranks[two]}
    load = loads(ranks, work, parts)
    return float(load.max() / load.mean()) + 0.25 * len(halo) / len(ranks)


def box(n_atoms: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, pairs and work (one and the edges of each atom) of a random graph."""
    graph = random_graph(n_atoms, seed)
    work = 1.0 + torch.bincount(graph["edge_index"][1], minlength=n_atoms).double()
    return graph["positions"], graph["edge_index"], work


@st.composite
def atoms_with_work(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Positions, some of them equal, and work from equal to all at few atoms."""
    n = draw(st.integers(1, 40))
    numbers = st.lists(st.integers(0, 3), min_size=3, max_size=3)
    positions = draw(st.lists(numbers, min_size=n, max_size=n))
    work = draw(st.lists(st.sampled_from([1.0, 1.0, 2.0, 50.0]), min_size=n, max_size=n))
    return torch.tensor(positions, dtype=torch.float64), torch.tensor(work, dtype=torch.float64)


@given(atoms_with_work(), st.integers(1, 8))
def test_bisection_is_in_range_and_balanced(given_atoms: tuple[Tensor, Tensor], parts: int) -> None:
    """No rank has more than its share and a few atoms: each cut is at most one atom off."""
    positions, work = given_atoms
    ranks = bisect(positions, work, parts)
    assert ranks.shape == work.shape
    assert ranks.dtype == torch.int64
    assert ranks.min() >= 0 and ranks.max() < parts
    assert loads(ranks, work, parts).max() <= max(work.sum() / parts, work.max()) + 2 * work.max()


@pytest.mark.parametrize("parts", [2, 3, 4, 7])
def test_bisection_balances_a_box(parts: int) -> None:
    positions, _, work = box(300)
    load = loads(bisect(positions, work, parts), work, parts)
    assert load.max() / load.mean() < 1.05


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_bisection_gives_each_rank_an_atom(parts: int) -> None:
    """Equal atoms at one place have no longest axis; they are divided all the same."""
    ranks = bisect(torch.zeros(parts, 3, dtype=torch.float64), torch.ones(parts, dtype=torch.float64), parts)
    assert sorted(ranks.tolist()) == list(range(parts))


@pytest.mark.parametrize("parts", [2, 3, 4, 7])
def test_metis_balances_a_box(parts: int) -> None:
    _, pairs, work = box(300)
    ranks = metis(300, pairs, work, parts)
    load = loads(ranks, work, parts)
    assert ranks.shape == (300,)
    assert ranks.dtype == torch.int64
    assert ranks.min() >= 0 and ranks.max() < parts
    assert load.max() / load.mean() < 1.10


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30))
    ),
    st.integers(2, 6),
)
@settings(max_examples=50)
def test_any_pairs_give_a_partition_in_range(graph: tuple[int, list[tuple[int, int]]], parts: int) -> None:
    """Isolated atoms, self-images, repeated and one-way pairs: METIS wants none of these, users have all of them."""
    n, listed = graph
    pairs = torch.tensor(listed, dtype=torch.int64).reshape(-1, 2).T
    work = 1.0 + torch.bincount(pairs[1], minlength=n).double()
    found = partition(n, pairs, work, [], parts)
    assert found.ranks.shape == (n,)
    assert found.ranks.min() >= 0 and found.ranks.max() < parts
    load = loads(found.ranks, work, parts)
    assert found.imbalance == pytest.approx(float(load.max() / load.mean()))
    assert found.score == pytest.approx(score(found.ranks, pairs, work, parts))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_the_better_candidate_is_kept(seed: int, parts: int) -> None:
    """Several coordinate inputs may be positions; the result is no worse than any bisection and than METIS."""
    positions, pairs, work = box(60, seed)
    velocities = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    candidates = {
        "RCB": [score(bisect(x, work, parts), pairs, work, parts) for x in (velocities, positions)],
        "METIS": [score(metis(60, pairs, work, parts), pairs, work, parts)],
    }
    found = partition(60, pairs, work, [velocities, positions], parts)
    assert found.score == pytest.approx(min(min(scores) for scores in candidates.values()))
    assert found.score == pytest.approx(min(candidates[found.method]))


def test_both_methods_win_somewhere() -> None:
    """A ladder of atoms listed without order suits METIS if positions say nothing, bisection if they say all."""
    n = 40
    one = torch.arange(n - 1)
    pairs = torch.stack([torch.cat([one, one + 1]), torch.cat([one + 1, one])])
    work = 1.0 + torch.bincount(pairs[1], minlength=n).double()
    along = torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    shuffled = along[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    assert partition(n, pairs, work, [shuffled], 4).method == "METIS"
    assert partition(n, None, work, [along], 4).method == "RCB"
    best = min([score(bisect(along, work, 4), pairs, work, 4), score(metis(n, pairs, work, 4), pairs, work, 4)])
    assert partition(n, pairs, work, [along], 4).score == pytest.approx(best)


def test_no_atoms() -> None:
    found = partition(0, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), [], 3)
    assert found.ranks.shape == (0,)
    assert found.imbalance == 1.0


@pytest.mark.parametrize("n_atoms", [1, 2, 5])
def test_ranks_outnumber_atoms(n_atoms: int) -> None:
    """An atom a rank."""
    pairs = torch.zeros(2, 3, dtype=torch.int64)  # an atom and its own images
    work = torch.ones(n_atoms, dtype=torch.float64)
    assert partition(n_atoms, pairs, work, [], 5).ranks.tolist() == list(range(n_atoms))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("has_positions", [True, False])
def test_no_edges(parts: int, has_positions: bool) -> None:
    """Atoms alone, with or without positions, are divided evenly."""
    positions = [torch.rand(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
    for pairs in (None, torch.zeros(2, 0, dtype=torch.int64)):
        found = partition(30, pairs, torch.ones(30, dtype=torch.float64), positions if has_positions else [], parts)
        assert torch.bincount(found.ranks, minlength=parts).tolist() == [30 // parts] * parts
        assert found.halo_per_atom == 0.0


@pytest.mark.parametrize("at", [0, 17, 39])
def test_all_work_at_one_atom(at: int) -> None:
    """One atom that receives every edge: its rank cannot be relieved, and the others get the rest."""
    pairs = torch.stack([torch.arange(40), torch.full((40,), at)])
    work = 1.0 + torch.bincount(pairs[1], minlength=40).double() * 100
    positions = torch.arange(40, dtype=torch.float64)[:, None] * torch.tensor([0.0, 1.0, 0.0])
    found = partition(40, pairs, work, [positions], 4)
    assert found.ranks.min() >= 0 and found.ranks.max() < 4
    assert found.imbalance <= 4.0
    assert found.score == pytest.approx(score(found.ranks, pairs, work, 4))


def test_a_partition_scores_halo_rows_against_imbalance() -> None:
    """A halo row costs a quarter of an owned atom's work."""
    even = Partition(torch.tensor([0, 1]), "given", halo_per_atom=1.0, imbalance=1.0)
    skewed = Partition(torch.tensor([0, 0]), "given", halo_per_atom=0.0, imbalance=2.0)
    assert even.score == 1.25
    assert skewed.score == 2.0
