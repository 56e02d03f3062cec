"""Run a program on rows that ranks make themselves: no rank has the whole graph object, nor the division of all rows.

    positions ──> the rank of each atom ──> a rank's rows ──index program──> pointers ──> plan ──> graph on its rows
                                                                               └── keys of halo rows ──> their owners

What has no rows (the number of atoms, the volume) comes out of the index program as it runs on all atoms, without
edges.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import DistcompileError, RankError, in_one_line
from ...ir import Placement, Space
from ...ir.graphs import copy_graph, runnable
from ...ir.tree import Leaf
from ..division.plan import SpacePlan, Tally, rows_of_atoms
from ..division.shard import Order, gather_output
from ..division.shares import LocalPlan, Share, Shares, completed, local_plan, requested
from ..world import Communicator
from .agreement import Report, compare
from .executor import Executor
from .inputs import check_guards, number_in
from .memory import Free, free, share
from .precision import as_written
from .preparing import Prepared
from .tables import within_tables

UNEVEN = 1.01
"""Atoms are divided anew, by the rows that follow each of them, if a rank has so many times the mean of all rows."""

GROWN = 1.05
"""A tiling is chosen again when a rank has so many times the rows for which it was."""


class NotDivisibleError(DistcompileError):
    """A program needs something of all rows that ranks which make their rows themselves do not have."""


@dataclasses.dataclass
class _Rank:
    """What one rank keeps from one evaluation to the next."""

    bytes: int = 0
    """Of its rows of the graph object."""
    pointers: dict[str, Tensor] | None = None
    plan: LocalPlan | None = None
    requests: dict[str, tuple[Tensor, Tensor]] | None = None
    plans: dict[str, SpacePlan] | None = None


@dataclasses.dataclass
class _Common:
    """What is the same on all ranks in an evaluation."""

    ranks: Tensor
    """The rank of each atom.  # Shape: [n_atoms], int64"""
    values: dict[int, Any]
    """Outputs of the index program without rows."""
    by_work: bool
    """True if it is known that the division is as even as it can be."""
    chosen: bool = False
    """True once it is chosen how the program runs."""


class OwnRows:
    """Runs one program of an executor on rows that ranks make themselves."""

    def __init__(self, executor: Executor, paths: Sequence[str], has_rows_of: Sequence[str | None]) -> None:
        """
        Args:
            executor: of the program.
            paths: of the graph object's leaves.
            has_rows_of: for each leaf, the space of its rows; None if it has none.

        Raises:
            NotDivisibleError: the program needs all rows of something.
        """
        self.executor, self.paths = executor, paths
        self._calls = 0
        self.sizes: dict[str, int] = {}
        """Rows of each space in the last evaluation, of all ranks."""
        self._ranks: Tensor | None = None
        self._by_work = False
        self._orders: dict[str, Order] = {}
        self._kept: dict[int, _Rank] = {}
        self._fitted: Tally | None = None
        self.tally: Tally | None = None
        """Rows of each rank in the last evaluation."""
        program = executor.program
        for given in executor.inputs:
            if given.kind in ("owned", "order", "counts") or any(s.all_of is not None for s in program.spaces):
                raise NotDivisibleError("a part of the model runs on all rows on every rank")
        self._spaces: list[Space] = [s for s in program.spaces if s.sharded]
        self._pointers = [p for p in program.pointers if p.source.sharded and p.target.sharded]
        self._without_rows = executor.inputs_without_rows()
        self._wanted = sorted({*self._without_rows, *(at for _, at in program.conditions)})
        self._of_atoms, self._leaves_of_atoms = _only(program.index_program, self._wanted)
        for at in self._leaves_of_atoms:
            if has_rows_of[at] not in (None, self._spaces[0].name):
                raise NotDivisibleError(f"the model counts, or adds up, {paths[at]} of all {has_rows_of[at]}")

    def __call__(self, shares: Shares, results: Collection[int]) -> list[Tensor | None]:
        """Evaluate the program; of the tensors of its result, those at these places are returned, whole.

        Raises:
            NotDivisibleError: one of them has rows of another space than atoms.
        """
        for at in results:
            self._check(at)
        self._calls += 1
        common: list[_Common] = []  # virtual ranks share what the first one made, and chose

        def made(comm: Communicator) -> tuple[Prepared, _Rank, list[dict[str, Any]]]:
            problem: Exception | None = None
            prepared: Prepared | None = None
            kept, stays = _Rank(), False
            try:
                if not common:
                    common.append(self._common(shares))
                kept = self._kept.setdefault(comm.rank, _Rank())
                prepared, stays = self._prepared(shares, common[-1].ranks, comm, kept)
            except Exception as error:  # the other ranks must hear of any error
                problem = error
            try:
                everyone = self._agree(comm, shares, kept, stays, problem)
                if problem is not None:
                    raise problem
            except Exception:
                self._kept = {}  # no rank knows what others read of it now
                raise
            assert prepared is not None
            return prepared, kept, everyone

        def work(comm: Communicator) -> list[Tensor | None]:
            prepared, kept, everyone = made(comm)
            first = common[-1]
            if not first.by_work and is_uneven([sum(report["owned"].values()) for report in everyone]):
                rows = self._rows_of_atoms(prepared, comm)
                if common[-1] is first:
                    common.append(self._common(shares, rows))
                prepared, kept, everyone = made(comm)
            assert kept.plan is not None
            if not all(report["stays"] for report in everyone):
                kept.requests, kept.plans = requested(kept.plan, comm), None
            if kept.plans is None:
                assert kept.requests is not None
                kept.plans = completed(kept.plan, kept.requests)
            if not common[-1].chosen:
                self._choose(everyone, prepared, common[-1].values)
                common[-1].chosen = True
            values = list(prepared.values)
            for at in self._without_rows:
                values[at] = common[-1].values[at]
            given = self.executor.results_here(values, kept.plans, prepared.sizes, {}, {}, comm.device)
            found = self._gathered(given, results, comm)
            return found if comm.device is None else self.executor.at_home(found)

        begun = time.perf_counter()
        found = self.executor.world.run(work)[0]
        if self.executor.fit is not None:
            self.executor.fit.took(time.perf_counter() - begun)
        return found

    def _common(self, shares: Shares, work: Tensor | None = None) -> _Common:
        """What is the same on all ranks; with `work`, after a division by it."""
        size = self.executor.world.size
        ranks = shares.divided(size, work)
        if self._ranks is None or not torch.equal(ranks, self._ranks):
            counts = torch.bincount(ranks, minlength=size).tolist()
            self._orders = {self._spaces[0].name: (ranks.argsort(stable=True), counts)}
            self._ranks, self._by_work, self._kept = ranks, False, {}
        self._by_work |= work is not None
        return _Common(ranks, self._values_of_all_atoms(shares), self._by_work)

    def _rows_of_atoms(self, prepared: Prepared, comm: Communicator) -> Tensor:
        """The rows of all spaces that follow each atom of all.  # Shape: [n_atoms], float64"""
        order, counts = self._orders[self._spaces[0].name]  # read before ranks meet: the first one divides anew then
        everyone = comm.all_gather(self.rows_of_atoms(prepared, counts[comm.rank]), counts)
        found = torch.empty_like(everyone)
        found[order] = everyone
        return found

    def _check(self, at: int) -> None:
        output = self.executor.program.outputs[at]
        if output.source == "index":
            raise NotDivisibleError("a result is an input of the model, of all rows")
        place = self.executor.places[output.position]
        if isinstance(place, Placement):
            spaces = {f for dim in place.dims for f in dim if isinstance(f, Space)}
            if spaces - {self._spaces[0]}:
                raise NotDivisibleError(f"a result has rows of {', '.join(s.name for s in spaces)}")

    def _values_of_all_atoms(self, shares: Shares) -> dict[int, Any]:
        """The outputs of the index program that have no rows."""
        given = [shares.of_all_atoms(at) for at in self._leaves_of_atoms]
        with torch.no_grad(), as_written():
            found = runnable(self._of_atoms).forward(*given)
        return dict(zip(self._wanted, found, strict=True))

    def _prepared(self, shares: Shares, ranks: Tensor, comm: Communicator, kept: _Rank) -> tuple[Prepared, bool]:
        """A rank's rows after the index program, with their plan; and true if it reads the same rows as before."""
        mine = shares.share(comm.rank, ranks)
        kept.bytes = sum(t.untyped_storage().nbytes() for t in mine.tensors)
        prepared = self.indexed(mine)
        asked = kept.requests is not None
        if kept.pointers is not None and _same(kept.pointers, prepared.pointers):
            return prepared, asked
        plan = self.planned(mine, prepared, ranks, comm.rank, comm.size)
        stays = asked and plan.reads_the_same(kept.plan)
        kept.pointers, kept.plan, kept.plans = prepared.pointers, plan, None
        return prepared, stays

    def indexed(self, mine: Share) -> Prepared:
        """A rank's rows after the index program."""
        leaves = [Leaf(path, tensor) for path, tensor in zip(self.paths, mine.tensors, strict=True)]
        return self.executor.prepare(leaves, whole=False)

    def planned(self, mine: Share, prepared: Prepared, ranks: Tensor, rank: int, parts: int) -> LocalPlan:
        """The rows that a rank owns and reads."""
        given = prepared.sizes, prepared.pointers, mine, ranks, rank, parts
        return local_plan(self._spaces, self._pointers, *given, self.executor.program.thinned_spaces)

    def rows_of_atoms(self, prepared: Prepared, owned: int) -> Tensor:
        """The rows of all spaces that follow each of a rank's own atoms, ascending.  # Shape: [owned], float64"""
        return rows_of_atoms(self._spaces, self._pointers, prepared.sizes, prepared.pointers)[:owned]

    def has_all_rows(self, shares: Shares) -> bool:
        """True if each atom, on a rank of its own, gets the rows that follow it in the whole structure."""
        n = len(shares)
        everyone, alone = torch.arange(n), torch.zeros(n, dtype=torch.int64)
        whole = shares.share(0, alone)
        expected = self.planned(whole, self.indexed(whole), alone, 0, 1).owned
        found: dict[str, list[Tensor]] = {name: [] for name in expected}
        for rank in range(n):
            mine = shares.share(rank, everyone)
            try:
                owned = self.planned(mine, self.indexed(mine), everyone, rank, n).owned
            except DistcompileError:
                return False
            for name, keys in owned.items():
                found[name].append(keys)
        return all(
            torch.equal(torch.cat(found[name]).sort().values, keys.sort().values) for name, keys in expected.items()
        )

    def _agree(
        self, comm: Communicator, shares: Shares, kept: _Rank, stays: bool, problem: Exception | None
    ) -> list[dict[str, Any]]:
        """The reports of all ranks, if they evaluate the same."""
        plans = kept.plan.plans if kept.plan is not None else {}
        left = free(comm.device or self.executor.device)
        report = {
            "call": self._calls, "graph": shares.digest, "stays": stays,
            "problem": in_one_line(problem) if problem is not None else "",
            "owned": {s.name: len(plans[s.name].owned) for s in self._spaces if s.name in plans},
            "halo": {name: len(plan.halo) for name, plan in plans.items()},
            "bytes": kept.bytes, "free": dataclasses.astuple(left) if left is not None else None,
            "ready": self.executor.fit is not None and self.executor.fit.is_faster_ready,
        }  # fmt: skip
        everyone: list[dict[str, Any]] = comm.all_gather_objects(report)
        compare(comm.rank, [Report(r["call"], r["graph"], r["problem"], None) for r in everyone])
        failed = [(rank, r["problem"]) for rank, r in enumerate(everyone) if r["problem"]]
        if failed and problem is None:
            raise RankError(f"Rank {failed[0][0]} refused its part of the structure: {failed[0][1]}")
        return everyone

    def _choose(self, everyone: Sequence[Mapping[str, Any]], prepared: Prepared, whole: Mapping[int, Any]) -> None:
        """Check the branches of the model for all rows together, and choose how the program runs."""
        executor, program = self.executor, self.executor.program
        owned = {s.name: [int(r["owned"][s.name]) for r in everyone] for s in self._spaces}
        known = {s.symbol: sum(owned[s.name]) for s in self._spaces}
        sizes = dict(known)
        for symbol, at in program.conditions:
            known[symbol] = number_in(whole[at])
        check_guards(program, known, sizes)
        fit = executor.fit
        halo = {name: [int(r["halo"][name]) for r in everyone] for name in everyone[0]["halo"]}
        self.tally = tally = Tally([int(r["bytes"]) for r in everyone], len(everyone), owned, halo)
        self.sizes = {**prepared.sizes, **{name: sum(counts) for name, counts in owned.items()}}
        if fit is None:
            return
        if self._fitted is None or _has_grown(tally, self._fitted):
            given = [Free(*r["free"]) if r["free"] else None for r in everyone]
            executor.run_as(fit(self.sizes, tally, share(given)))
            self._fitted = tally
        elif all(r["ready"] for r in everyone):
            executor.run_as(fit.switch())

    def _gathered(self, given: Sequence[Any], results: Collection[int], comm: Communicator) -> list[Tensor | None]:
        """The results that are wanted, whole; and what tables were asked outside of their range."""
        program = self.executor.program
        n_results = len(program.outputs) - len(program.tabulated)
        found: list[Any] = []
        for at, output in enumerate(program.outputs):
            if at < n_results and at not in results:
                found.append(None)
                continue
            value, place = given[output.position], self.executor.places[output.position]
            found.append(gather_output(value, place, self._orders, comm) if isinstance(place, Placement) else value)
        return within_tables(program, found)  # type: ignore[return-value]


def is_uneven(rows: Sequence[float]) -> bool:
    """True if a rank has many more rows than the mean."""
    return max(rows) * len(rows) > UNEVEN * sum(rows)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(one[name] is value or torch.equal(one[name], value) for name, value in other.items())


def _has_grown(now: Tally, then: Tally) -> bool:
    pairs = [(now.ranks[n], then.ranks[n]) for n in now.ranks] + [
        (now.halo_keys[n], then.halo_keys[n]) for n in now.halo_keys
    ]
    return any(max(a) > GROWN * max(b) + 8 for a, b in pairs)


def _only(program: fx.GraphModule, wanted: Sequence[int]) -> tuple[fx.GraphModule, list[int]]:
    """A program that gives some outputs of another one, and the numbers of the inputs that it takes."""
    module, _ = copy_graph(program)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    output.args = ([output.args[0][at] for at in wanted],)
    for node in reversed(list(module.graph.nodes)):
        if node is not output and not node.users:  # torch's own removal keeps operators that may have effects
            module.graph.erase_node(node)
    left = set(module.graph.nodes)
    return module, [at for at, node in enumerate(placeholders) if node in left]
