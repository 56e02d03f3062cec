"""Run the regions of a group in step: a stretch of atoms together with that of their edges.

    sums = region over edges (adds to atoms)         for each stretch of atoms, and the edges that follow them:
    new = region over atoms (reads sums)       =>        sums = region over edges
    y = region over edges (reads new)                    new = region over atoms
                                                         y = region over edges
    sums, new: rows of all atoms                     sums, new: rows of one stretch, in the cache of a core

Rows that follow an atom through owner pointers stand in the order of their atoms, so a stretch of atoms has one of each
such space. Regions pass rows to each other, and read and add to tables at the rows that they follow. Only what is
needed after the group exists for all rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...ir.graphs import runnable
from .blocks import in_order
from .kernels import ALIGNED, Kernel, address, extent
from .tiles import Add, Collected, Region, Store, add_rows

NEAR_BYTES = 2**20
"""Bytes of a stretch that regions with kernels pass to each other: a share of a core's own cache."""
LEAST = 16
"""Atoms of a stretch: as many as a kernel's vector has lanes, or a multiple of them."""


@dataclasses.dataclass(frozen=True)
class Passed:
    """A result of an earlier region of the group. It exists for a stretch at a time."""

    member: int
    result: int


@dataclasses.dataclass(frozen=True)
class Sums:
    """A table of sums that is passed: the value of each row before anything is added, and its shape."""

    fill: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclasses.dataclass(frozen=True)
class Member:
    """A region of a group."""

    region: Region
    rows: int
    """The position of the number of rows among the arguments of the group."""
    inputs: tuple[int | Passed, ...]
    """Of each input, its position among the arguments of the group, or what is passed."""
    near: frozenset[int]
    """Inputs that are read at the rows that this region's rows follow."""
    pointers: frozenset[int]
    """Inputs that say which rows these are."""
    results: tuple[int | None, ...]
    """Of each result, its position among the results of the group; None if it is only passed."""
    more: tuple[int | Sums | None, ...]
    """Of each result, the argument that is the table to add to, or the room after rows; or a table for a stretch."""
    at_followed: frozenset[int]
    """Results that are added at the rows that this region's rows follow."""
    near_results: frozenset[int]
    """Those of them to whose table nothing else is added: no two stretches add to one row."""


class _Memory:
    """Memory of a stretch, which a later one uses again: a system clears what it hands out."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that is not used yet in this stretch."""
        size, start = math.prod(shape) * dtype.itemsize, self._used
        self._used += -(-size // ALIGNED) * ALIGNED
        if self._used > self._memory.numel():
            return torch.empty(shape, dtype=dtype)
        return self._memory[start : start + size].view(dtype).view(shape)

    def clear(self) -> None:
        """The stretch is done. The next one is about as long."""
        if self._used > self._memory.numel():
            self._memory = torch.empty(self._used, dtype=torch.uint8)
        self._used = 0


class InStep(nn.Module):
    """A group of regions that run in step."""

    def __init__(
        self,
        members: tuple[Member, ...],
        rows: int,
        follows: Mapping[str, tuple[int, str]],
        plain: fx.GraphModule,
    ) -> None:
        """
        Args:
            members: the regions in order.
            rows: the position of the number of atoms among the arguments.
            follows: per space, the position of its owner pointer, and the space that it points into.
            plain: the same regions one after the other.
        """
        super().__init__()
        self.members, self.rows, self.follows, self.plain = members, rows, dict(follows), plain

    def stretch_bytes(self, rows: Mapping[str, int]) -> int:
        """Bytes of the values of a stretch on all threads, given the rows of every space."""
        threads, found = torch.get_num_threads(), 0.0
        for member in self.members:
            region = member.region
            found = max(found, min(rows[region.spec.space], threads * region.block) * region.spec.row_bytes)
        return int(found) + threads * NEAR_BYTES

    def forward(self, *args: Any) -> list[Any]:
        """Run all regions; return the results of the group."""
        run = _Run.of(self, args)
        if run is None:
            return list(runnable(self.plain)(*args))
        in_order(len(run.bounds[run.atoms]) - 1, run.threads, run.work, run.take)
        return run.results()


@dataclasses.dataclass
class _Run:
    """One call of a group."""

    group: InStep
    args: tuple[Any, ...]
    atoms: str
    bounds: dict[str, list[int]]
    """Per space, where each stretch begins, and where the last ends."""
    threads: int
    kernels: list[Kernel | None]
    given: list[list[Any]]
    """Per region, its inputs that are arguments of the group, as its code takes them."""
    addresses: list[list[int | None]]
    extents: list[list[int]]
    """Of these, what kernels are told."""
    collected: list[Collected]
    """Per region, its results of which all rows are needed after the group."""
    spare: list[_Memory]
    """Memory of stretches that are done."""

    @staticmethod
    def of(group: InStep, args: tuple[Any, ...]) -> _Run | None:
        """The call for some arguments; None if the regions have to run one after the other."""
        if any(args[m.rows] == 0 for m in group.members):
            return None
        pointers = {space: args[at] for space, (at, _) in group.follows.items()}
        if any(p.dim() != 1 or bool((p[1:] < p[:-1]).any()) for p in pointers.values()):
            return None
        kernels: list[Kernel | None] = []
        given: list[list[Any]] = []
        for member in group.members:
            inputs = [args[i] if isinstance(i, int) else None for i in member.inputs]
            compiled = member.region.compiled
            kernel = compiled if isinstance(compiled, Kernel) and compiled.takes(inputs) else None
            if kernel is not None and not kernel.in_stretches:
                return None
            kernels.append(kernel)
            given.append(kernel.laid_out(inputs) if kernel is not None else list(member.region.laid_out(inputs)))
        atoms = next((t for _, t in group.follows.values() if t not in group.follows), "")
        bounds, threads = _stretches(group, args, kernels, given, pointers, atoms)
        addresses = [
            [address(v) if k is not None else None for v in each] for each, k in zip(given, kernels, strict=True)
        ]
        extents = [[extent(v) if k is not None else 0 for v in each] for each, k in zip(given, kernels, strict=True)]
        run = _Run(group, args, atoms, bounds, threads, kernels, given, addresses, extents, [], [])
        for member, kernel in zip(group.members, kernels, strict=True):
            run.collected.append(run._collected(member, kernel))
        return run

    def _collected(self, member: Member, kernel: Kernel | None) -> Collected:
        """Tables to add to, and memory for the rows that a kernel writes."""
        spec, rows = member.region.spec, self.args[member.rows]
        halos = [isinstance(r, Store) and r.room for r in spec.results]
        room = [self.args[_known(m)] if has else 0 for m, has in zip(member.more, halos, strict=True)]
        so_far: list[Any] = [None] * len(room)
        for j, (result, at) in enumerate(zip(spec.results, member.results, strict=True)):
            if at is None:
                continue
            if isinstance(result, Add) and result.after is None:
                table: Tensor = self.args[_known(member.more[j])]
                so_far[j] = (table if result.reuse else table.clone()).contiguous()
            elif isinstance(result, Store) and kernel is not None:
                so_far[j] = kernel.by_result[j][0].empty(rows, room[j])
        return Collected(spec.results, so_far, rows, room, kernel, member.near_results)

    def results(self) -> list[Any]:
        """The results of the group, when all stretches are done."""
        found: list[Any] = [None] * sum(k is not None for m in self.group.members for k in m.results)
        for member, collected in zip(self.group.members, self.collected, strict=True):
            collected.close()
            for at, value in zip(member.results, collected.so_far, strict=True):
                if at is not None:
                    found[at] = value
        return found

    def rows(self, space: str, stretch: int) -> tuple[int, int]:
        """The rows of a space in a stretch: the first, and the one after the last."""
        return self.bounds[space][stretch], self.bounds[space][stretch + 1]

    def work(self, stretch: int) -> tuple[_Memory, list[tuple[int, list[Any]]]]:
        """Run all regions on a stretch. Returns, per region, what is to be taken in the order of stretches."""
        memory = self.spare.pop() if self.spare else _Memory()
        passed: dict[tuple[int, int], Tensor] = {}
        kept: list[tuple[int, list[Any]]] = []
        for i, member in enumerate(self.group.members):
            space = member.region.spec.space
            first, end = self.rows(space, stretch)
            low, high = self.rows(self.group.follows[space][1], stretch) if space in self.group.follows else (0, 0)
            for j in member.near_results:
                passed[i, j] = self._sums(i, j, passed, low, high, memory)
            if first == end:
                continue
            kernel = self.kernels[i]
            if kernel is not None:
                kept.append((i, self._kernel(i, kernel, passed, (first, end), (low, high), memory)))
            else:
                kept.append((i, self._operators(i, passed, (first, end), (low, high))))
        return memory, kept

    def _sums(
        self, i: int, j: int, passed: Mapping[tuple[int, int], Tensor], low: int, high: int, memory: _Memory
    ) -> Tensor:
        """The rows of a table that a stretch adds to. No other stretch does."""
        member = self.group.members[i]
        result, more, at = member.region.spec.results[j], member.more[j], member.results[j]
        assert isinstance(result, Add)
        if result.after is not None:
            return passed[i, result.after]
        if at is not None:
            return self.collected[i].so_far[j].narrow(0, low, high - low)  # type: ignore[no-any-return]
        assert isinstance(more, Sums)
        shape = (high - low, *more.shape)
        if more.device.type != "cpu":
            return torch.full(shape, more.fill, dtype=more.dtype, device=more.device)
        return memory.empty(shape, more.dtype).fill_(more.fill)

    def _operators(
        self, i: int, passed: dict[tuple[int, int], Tensor], own: tuple[int, int], followed: tuple[int, int]
    ) -> list[Any]:
        """Run a region without a kernel on some rows."""
        member, (first, end), (low, high) = self.group.members[i], own, followed
        region, n = member.region, end - first
        inputs: list[Any] = []
        for k, (source, part) in enumerate(zip(member.inputs, region.spec.inputs, strict=True)):
            if isinstance(source, Passed):
                inputs.append(passed[source.member, source.result])
                continue
            value = self.given[i][k]
            if part is not None:
                value = value.narrow(part.dim, first * part.factor, n * part.factor)
                value = value - low if k in member.pointers else value
            elif k in member.near:
                value = value.narrow(0, low, high - low)
            inputs.append(value)
        run = region.compiled if callable(region.compiled) else runnable(region.graph_module)
        found = iter(list(run(n, *inputs)))
        kept: list[Any] = []
        for j, result in enumerate(region.spec.results):
            values = [next(found), next(found)] if isinstance(result, Add) else [next(found)]
            if isinstance(result, Add) and j in member.near_results:
                add_rows(result, passed[i, j], *values)
                continue
            if j in member.at_followed:
                values[0] = values[0] + low
            if isinstance(result, Store):
                passed[i, j] = values[0]
            if member.results[j] is not None:
                kept.append((j, values))
        return kept

    def _kernel(
        self,
        i: int,
        kernel: Kernel,
        passed: dict[tuple[int, int], Tensor],
        own: tuple[int, int],
        followed: tuple[int, int],
        memory: _Memory,
    ) -> list[Any]:
        """Run a kernel on some rows. It is told where the first rows of memory would be if all of them existed."""
        member, (first, end), (low, high) = self.group.members[i], own, followed
        spec = member.region.spec
        addresses, extents = list(self.addresses[i]), self.extents[i]  # no row that is passed is counted from the end
        alive: list[Tensor] = []
        for k, source in enumerate(member.inputs):
            if isinstance(source, Passed):
                alive.append(passed[source.member, source.result].movedim(kernel.rows[k] or 0, 0).contiguous())
                begins, n = (first, end - first) if spec.inputs[k] is not None else (low, high - low)
                addresses[k] = _as_if_whole(alive[-1], begins, n)
        to: list[int] = []
        numbers: list[int | None] = []
        kept: list[Any] = []
        sums: list[tuple[int, Add, list[Tensor]]] = []
        each = zip(spec.results, member.results, kernel.by_result, strict=True)
        for j, (result, at, (value, *more)) in enumerate(each):
            numbers.append(None)
            collected = self.collected[i]
            if value.kind == "store":
                entries = value.shape[0]
                if at is None:
                    passed[i, j] = value.empty(end - first, take=memory.empty)
                else:
                    whole: Tensor = collected.so_far[j]
                    passed[i, j] = whole.narrow(0, first * entries, (end - first) * entries)
                to.append(_as_if_whole(passed[i, j], first, end - first))
            elif value.kind == "add" and value.where is not None and j in member.near_results:
                to.append(_as_if_whole(passed[i, j], low, high - low))
            elif value.kind == "add" and j not in member.near_results and self._adds_at_once(collected, j):
                to.append(collected.so_far[j].data_ptr())
            else:
                found = [v.empty(end - first, take=memory.empty) for v in (value, *more)]
                to += [f.data_ptr() for f in found]
                numbers += [None] * len(more)
                if value.kind == "add":
                    found.insert(0, memory.empty((end - first,), torch.int64))
                    numbers[-1] = found[0].data_ptr()
                if isinstance(result, Add) and j in member.near_results:
                    sums.append((j, result, found))
                else:
                    kept.append((j, found))
        kernel.run(first, end, addresses, extents, to, numbers)
        for j, result, (where, what) in sums:
            add_rows(result, passed[i, j], where - low, what, kernel)
        return kept

    def _adds_at_once(self, collected: Collected, j: int) -> bool:
        """True if the only thread adds to a table of all rows as it goes."""
        return self.threads == 1 and not collected.in_double(j)

    def take(self, stretch: int, done: tuple[_Memory, list[tuple[int, list[Any]]]]) -> None:
        """Take what regions keep of a stretch into the results of the group."""
        memory, kept = done
        for i, found in kept:
            first, end = self.rows(self.group.members[i].region.spec.space, stretch)
            for j, values in found:
                self.collected[i].take(j, iter(values), first, end - first)
        memory.clear()
        self.spare.append(memory)


def _as_if_whole(part: Tensor, first: int, rows: int) -> int:
    """The address at which row 0 would be, of memory that begins with a later row."""
    return part.data_ptr() - first * (part.numel() // rows) * part.element_size()


def _known(position: Any) -> int:
    assert isinstance(position, int)
    return position


def _stretches(
    group: InStep,
    args: Sequence[Any],
    kernels: Sequence[Kernel | None],
    given: Sequence[Sequence[Any]],
    pointers: Mapping[str, Tensor],
    atoms: str,
) -> tuple[dict[str, list[int]], int]:
    """Per space, where stretches begin and the last ends; and the number of threads."""
    rows = args[group.rows]
    passed, size, threads = 0.0, math.inf, 1
    for member, kernel, inputs in zip(group.members, kernels, given, strict=True):
        each = args[member.rows] / rows
        threads = max(threads, member.region.schedule(args[member.rows], inputs)[0])
        if kernel is None:
            size = min(size, member.region.block / each)
        for j, at in enumerate(member.results):
            more = member.more[j]
            if isinstance(more, Sums):
                passed += math.prod(more.shape) * more.dtype.itemsize
            elif at is None and kernel is not None:
                (value, *_) = kernel.by_result[j]
                passed += each * value.width * value.dtype.itemsize
    size = min(size, NEAR_BYTES / max(passed, 1.0), rows)
    size = min(max(LEAST, int(size) // LEAST * LEAST), -(-rows // threads))
    bounds = {atoms: [*range(0, rows, size), rows]}
    left = dict(group.follows)
    while left:
        space = next(s for s, (_, target) in left.items() if target in bounds)
        pointer = pointers[space]
        begin = torch.tensor(bounds[left.pop(space)[1]], dtype=pointer.dtype, device=pointer.device)
        bounds[space] = torch.searchsorted(pointer.contiguous(), begin).tolist()
    return bounds, min(threads, len(bounds[atoms]) - 1)
