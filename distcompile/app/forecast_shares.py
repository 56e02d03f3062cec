"""Forecasts where ranks make their rows of the graph object themselves: those of a few ranks are made and counted."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch
from torch import Tensor

from ..ir import Tiled
from ..layout.evaluate import Divided, Evaluator, divide
from ..layout.structure import Structure
from ..predict.by_rank import needs
from ..predict.calibrate import timed
from ..predict.planning import Host
from ..predict.rank_counts import RankCounts, SpaceCounts
from ..runtime.division.partition import Partition
from ..runtime.division.plan import SpacePlan, Tally
from ..runtime.division.shares import completed
from ..runtime.execution.shares import OwnRows, is_uneven

LOOKED_AT = 4
"""Ranks whose rows are made; the others are taken to have no more."""

LARGEST = 50_000
"""Atoms of a rank whose rows are made. Those of a rank with more are as many times the rows of one with so many."""

STEPS = 20
"""Steps between two searches for neighbours."""


def counted(evaluator: Evaluator, own: OwnRows, structure: Structure, parts: int) -> tuple[RankCounts, Host, int]:
    """The rows of the fullest ranks, seconds in which they are made in a step, and bytes of the graph object's rows."""
    made = max(parts, math.ceil(len(structure) / LARGEST))
    larger = made / parts
    evaluator.forget()
    shares = Divided(evaluator, structure)
    looked_at = sorted({round(i * (made - 1) / max(LOOKED_AT - 1, 1)) for i in range(LOOKED_AT)})[:parts]
    ranks, rows = divide(structure, made), None
    few = [_made(own, shares, ranks, rank, made) for rank in looked_at]
    if parts > 1 and is_uneven([each.all_rows for each in few]):
        rows = _rows_of_atoms(evaluator, own, shares, ranks, made)
        ranks = divide(structure, made, rows)
        few = [_made(own, shares, ranks, rank, made) for rank in looked_at]
    owned = [{name: len(plan.owned) * larger for name, plan in each.plans.items()} for each in few]
    surface = larger ** (2 / 3) if parts > 1 else 0.0
    halo = [{name: len(plan.halo) * surface for name, plan in each.plans.items()} for each in few]
    peers = [{name: int((plan.splits[1] > 0).sum()) * (parts > 1) for name, plan in each.plans.items()} for each in few]
    spaces = {name: _space(name, owned, halo, peers, parts) for name in owned[0]}
    program = own.executor.program
    here = Partition.of(ranks, "by positions", made, rows)
    counts = RankCounts(
        parts, here, spaces, _memory(program, own, owned, halo), frozenset(s.name for s in program.thinned_spaces)
    )
    graph, checks, plan = np.max([each.seconds for each in few], axis=0) * larger
    _, everywhere = timed(lambda: Divided(evaluator, structure).digest)
    host = Host(
        0.0, everywhere if parts > 1 else 0.0, 0.0, own_rows=float(graph + checks + (plan if parts > 1 else 0.0))
    )
    evaluator.forget()
    return counts, host, int(max(each.bytes for each in few) * larger)


@dataclasses.dataclass(frozen=True)
class _Made:
    """What a rank makes of the graph object."""

    plans: dict[str, SpacePlan]
    seconds: tuple[float, float, float]
    """Of a step for the graph object, checks, and the plan."""
    bytes: int
    """Of the graph object's rows."""

    @property
    def all_rows(self) -> int:
        """The rows that the rank owns."""
        return sum(len(plan.owned) for plan in self.plans.values())


def _made(own: OwnRows, shares: Divided, ranks: Tensor, rank: int, parts: int) -> _Made:
    """A rank's rows, made and counted."""
    start = time.perf_counter()  # once: the pairs are kept for the next time
    shares.share(rank, ranks)
    searching = time.perf_counter() - start
    mine, again = timed(lambda: shares.share(rank, ranks))
    prepared, checking = timed(lambda: own.indexed(mine))
    plan, planning = timed(lambda: own.planned(mine, prepared, ranks, rank, parts))
    asked = {name: (plan.owned[name][: len(keys)], plan.plans[name].splits[1]) for name, keys in plan.wanted.items()}
    plans, sending = timed(lambda: completed(plan, asked))
    held = sum(tensor.untyped_storage().nbytes() for tensor in mine.tensors)
    return _Made(plans, (again + searching / STEPS, checking, planning + sending), held)


def _rows_of_atoms(evaluator: Evaluator, own: OwnRows, shares: Divided, ranks: Tensor, parts: int) -> Tensor:
    """The rows that follow each atom, made rank by rank.  # Shape: [n_atoms], float64"""
    found = torch.zeros(len(ranks), dtype=torch.float64)
    for rank in range(parts):
        mine = ranks == rank
        prepared = own.indexed(shares.share(rank, ranks))
        found[mine] = own.rows_of_atoms(prepared, int(mine.sum()))
        evaluator.forget()  # the pairs of all ranks would not fit
    return found


def _space(
    name: str, owned: list[dict[str, float]], halo: list[dict[str, float]], peers: list[dict[str, int]], parts: int
) -> SpaceCounts:
    """The counts of the ranks that were looked at, and zeros for the others."""
    of_owned, of_halo = np.zeros(parts, np.int64), np.zeros(parts, np.int64)
    reads = np.zeros((parts, parts), bool)
    for at in range(len(owned)):
        of_owned[at], of_halo[at] = round(owned[at][name]), round(halo[at][name])
        others = [p for p in range(parts) if p != at][: peers[at][name]]
        reads[others, at] = reads[at, others] = True
    return SpaceCounts(of_owned, of_halo, of_halo, reads)  # as many are sent as are received, but for chance


def _memory(program: Tiled, own: OwnRows, owned: list[dict[str, float]], halo: list[dict[str, float]]) -> np.ndarray:
    def by_rank(of: list[dict[str, float]], name: str) -> list[int]:
        return [round(each[name]) for each in of]

    names = [s.name for s in program.spaces if s.sharded]
    tally = Tally(
        [0] * len(owned), len(owned), {n: by_rank(owned, n) for n in names}, {n: by_rank(halo, n) for n in halo[0]}
    )
    return np.array(needs(own.executor.running, dict.fromkeys([s.name for s in program.spaces], 8), tally))
