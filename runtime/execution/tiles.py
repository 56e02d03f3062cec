"""Run a region block by block: its edge-sized values never exist whole.

for each block of rows:
    tables whole, own rows sliced  ->  body  ->  rows stored, or added into a table, or summed

A region may run over some of its rows while a message is under way, and over the others when it has come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...ir.graphs import runnable
from ...ir.operators import facts_of
from .blocks import in_order
from .kernels import Kernel

WORTH_A_THREAD = 2**18
"""Bytes of intermediate values below which a block is not worth handing to a thread."""
MANY, FEW = 256, 2**14
"""Rows that are added to each row of a table, and numbers of that table, from and up to which sums are in double."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """An input of which a block takes its own rows: ``factor`` entries of dimension `dim` for each row."""

    dim: int
    factor: int


@dataclasses.dataclass(frozen=True)
class Store:
    """A result with one slice for each row."""

    dim: int
    factor: int
    room: bool = False
    """True if room for halo rows follows."""


@dataclasses.dataclass(frozen=True)
class Add:
    """A result that is added (or compared) into a table, by two values of the body: the index and the rows."""

    dim: int
    reduction: str
    by_element: bool
    """True if the index has one entry for each element, as ``scatter_add`` takes it."""
    reuse: bool
    """True if nothing else needs the table to add to, so that it may be changed in place."""
    after: int | None = None
    """The earlier result of this region whose table this one adds to; None if it has a table of its own."""


@dataclasses.dataclass(frozen=True)
class Reduce:
    """A result of which each block holds a part."""

    reduction: str


Result = Store | Add | Reduce


@dataclasses.dataclass(frozen=True)
class RegionSpec:
    """The description of a region: the inputs of its body, and the use of its results."""

    name: str
    space: str
    level: int
    inputs: tuple[Slice | None, ...]
    """One for each input of the body after the number of rows; None for inputs that every block takes whole."""
    results: tuple[Result, ...]
    row_bytes: float
    """Bytes that the body holds for each row at its peak."""
    in_turn: bool
    """True if blocks run one after the other: the body draws random numbers, which a seed must fix for each block."""
    group: int | None = None
    """Regions of a group may run in step, see `runtime.execution.in_step`; None if regions are not grouped."""


def taken(results: Any, position: int, table: Tensor | None = None) -> Tensor:
    """One result of a region; `table` is the memory in which it stands, if that is not its own (see `account`)."""
    return results[position]  # type: ignore[no-any-return]


class Region(nn.Module):
    """A row-local stretch of the program over one space."""

    def __init__(
        self,
        spec: RegionSpec,
        body: fx.GraphModule,
        block: int,
        compiled: Callable[..., Sequence[Any]] | Kernel | None = None,
    ) -> None:
        """
        Args:
            spec: how the body is fed.
            body: the operators of one block of rows.
            block: rows of a block, at most.
            compiled: the compiled body, as a function of one block or as a kernel for all rows; if None, its operators
                run one by one.
        """
        super().__init__()
        self.spec, self.block = spec, block
        self.graph_module, self.compiled = body, compiled

    def running(self, compiled: Callable[..., Sequence[Any]] | Kernel) -> Region:
        """The same region with a body that was compiled."""
        return Region(self.spec, self.graph_module, self.block, compiled)

    def forward(
        self, rows: int, *args: Any, only: tuple[int, int] | None = None, so_far: list[Any] | None = None
    ) -> list[Any]:
        """Run over all rows, or over some now and over the others in another call.

        Args:
            rows: number of rows of this rank.
            args: the body's inputs, then the number of halo rows of each `Store` that has room for them, then the table
                of each `Add` that does not share one.
            only: the first row, and the one after the last, to run over.
            so_far: the results of the call for the other rows. They are completed and returned.
        """
        spec = self.spec
        inputs, more = args[: len(spec.inputs)], iter(args[len(spec.inputs) :])
        room = [next(more) if isinstance(r, Store) and r.room else 0 for r in spec.results]
        results: list[Any] = so_far if so_far is not None else []
        for result in spec.results[len(results) :]:
            results.append(None)
            if isinstance(result, Add) and result.after is None:
                table: Tensor = next(more)
                results[-1] = table if result.reuse else table.clone()
        first, end = only or (0, rows)
        kernel = self.compiled if isinstance(self.compiled, Kernel) and self.compiled.takes(inputs) and rows else None
        collected = Collected(spec.results, results, rows, room, kernel)
        if first < end or only is None or (rows == 0 and so_far is not None):
            # A region without any rows is run once, for the shapes of its results.
            if kernel is not None:
                self._run_kernel(kernel, inputs, collected, first, end)
            else:
                self._run_blocks(inputs, collected, first, end)
        collected.close()
        return results

    def _run_blocks(self, inputs: Sequence[Any], collected: Collected, first: int, end: int) -> None:
        """Run some rows block by block, from the first to before the last."""
        run: Callable[..., Sequence[Any]] = runnable(self.graph_module)
        if not collected.rows:
            run = OfNothing(self.graph_module).run
        elif self.compiled is not None and not isinstance(self.compiled, Kernel):
            run, inputs = self.compiled, self.laid_out(inputs)
        threads, block = self.schedule(end - first, inputs)

        def work(i: int) -> list[Any]:
            start = first + i * block
            n = min(block, end - start)
            given = [
                a if s is None else a.narrow(s.dim, start * s.factor, n * s.factor)
                for a, s in zip(inputs, self.spec.inputs, strict=True)
            ]
            return list(run(n, *given))

        def take(i: int, values: list[Any]) -> None:
            start, each = first + i * block, iter(values)
            for j in range(len(self.spec.results)):
                collected.take(j, each, start, min(block, end - start))

        in_order(-(-max(end - first, 1) // block), threads, work, take)

    def _run_kernel(self, kernel: Kernel, inputs: Sequence[Any], collected: Collected, first: int, end: int) -> None:
        """Run some rows as one loop, from the first to before the last."""
        threads, _ = self.schedule(end - first, inputs)
        results = collected.so_far
        memory: list[Tensor | None] = []
        at_once: list[bool] = []
        for j, (result, (value, *more)) in enumerate(zip(self.spec.results, kernel.by_result, strict=True)):
            if value.kind == "store" and results[j] is None:
                results[j] = kernel.empty(value, collected.rows, collected.room[j], inputs)
            if isinstance(result, Add):
                results[j] = results[j].contiguous() if result.after is None else results[result.after]
            adds = kernel.adds_at_once(value, threads) and not collected.in_double(j)
            at_once.append(value.kind == "store" or adds)
            memory += [results[j] if at_once[j] else None, *(None for _ in more)]
        given = kernel.laid_out(inputs)
        order, stretches = kernel.stretches(given, first, end, threads, [m is None for m in memory])
        run = kernel.caller(given, order, memory)

        def take(i: int, found: list[Tensor]) -> None:
            start, stop = stretches[i]
            each = iter(found)
            for j in range(len(at_once)):
                if not at_once[j]:
                    collected.take(j, each, start, stop - start)

        in_order(len(stretches), threads, lambda i: run(*stretches[i]), take)

    def laid_out(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Inputs in the layout that compiled code takes. Those that every block takes whole are changed here, once."""
        parts = zip(inputs, self.spec.inputs, strict=True)
        return tuple(a.contiguous() if s is None and isinstance(a, Tensor) else a for a, s in parts)

    def schedule(self, rows: int, inputs: Sequence[Any] = ()) -> tuple[int, int]:
        """(threads, rows of a block): blocks that the cache holds, as even as possible among threads."""
        on_cpu = all(a.device.type == "cpu" for a in inputs if isinstance(a, Tensor))
        threads = torch.get_num_threads() if on_cpu and not self.spec.in_turn else 1
        worth = int(rows * self.spec.row_bytes / WORTH_A_THREAD)
        threads = max(1, min(threads, worth))
        rounds = max(1, -(-rows // (self.block * threads)))
        return threads, max(1, -(-rows // (rounds * threads)))


class OfNothing(fx.Interpreter):
    """Runs a graph over no rows. Other ranks have rows, and the largest value of none is less than any of theirs."""

    def __init__(self, module: fx.GraphModule, attributes: Mapping[str, Any] | None = None) -> None:
        """`attributes` stand in for those of the module."""
        super().__init__(module)
        self._attributes = attributes or {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._attributes[target] if target in self._attributes else super().get_attr(target, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        row = facts_of(target)
        if not row.finds_extremes or args[0].numel():
            return super().call_function(target, args, kwargs)
        value, dims, keep = (*args, [], False)[:3]
        reduced = {d % value.dim() for d in dims} or set(range(value.dim()))
        shape = [1 if d in reduced else n for d, n in enumerate(value.shape) if keep or d not in reduced]
        limit = math.inf if value.is_floating_point() else torch.iinfo(value.dtype).max
        return value.new_full(shape, limit if row.reduces == "amin" else -limit)


class Collected:
    """The results of a region, completed block by block.

    Sums of many rows in few rows (the energy of a structure) are taken in double precision, since each of a million
    single-precision additions rounds by as much as the sum has grown.
    """

    def __init__(
        self,
        results: Sequence[Result],
        so_far: list[Any],
        rows: int,
        room: Sequence[int],
        kernel: Kernel | None = None,
        direct: Collection[int] = (),
    ) -> None:
        """
        Args:
            results: the use of each result.
            so_far: the table of each `Add`, and what was collected before of the others; completed by `close`.
            rows: rows of this rank.
            room: halo rows after those of each `Store`.
            kernel: what adds rows faster than an operator.
            direct: those of the tables to which their blocks add on their own.
        """
        self.results, self.so_far, self.rows, self.room, self.kernel = results, so_far, rows, room, kernel
        self._single: dict[int, torch.dtype] = {}
        for j, result in enumerate(results):
            if not isinstance(result, Add):
                continue
            if result.after is not None:
                so_far[j] = so_far[result.after]
            elif j not in direct and result.reduction == "sum" and _many_to_few(so_far[j], result.dim, rows):
                self._widen(j)

    def in_double(self, j: int) -> bool:
        """True if a result is summed in a higher precision than its own."""
        result = self.results[j]
        return (result.after if isinstance(result, Add) and result.after is not None else j) in self._single

    def take(self, j: int, values: Iterator[Any], start: int, n: int) -> None:
        """Take the contribution of `n` rows to a result from the values of the body."""
        result, value, so_far = self.results[j], next(values), self.so_far[j]
        if isinstance(result, Store):
            if n == self.rows and not result.room:
                self.so_far[j] = value
                return
            if so_far is None:
                shape = list(value.shape)
                shape[result.dim] = self.rows * result.factor + self.room[j]
                so_far = self.so_far[j] = value.new_empty(shape)
            so_far.narrow(result.dim, start * result.factor, n * result.factor).copy_(value)
        elif isinstance(result, Reduce):
            self.so_far[j] = value if so_far is None else _REDUCTIONS[result.reduction](so_far, value)
            if result.reduction == "sum" and value.dtype in _SINGLE:
                self._widen(j)
        else:
            add_rows(result, so_far, value, next(values), self.kernel)

    def close(self) -> None:
        """Give all results their own precision."""
        for j, dtype in self._single.items():
            self.so_far[j] = self.so_far[j].to(dtype)
        for j, result in enumerate(self.results):
            if isinstance(result, Add) and result.after is not None:
                self.so_far[j] = self.so_far[result.after]

    def _widen(self, j: int) -> None:
        self._single.setdefault(j, self.so_far[j].dtype)
        self.so_far[j] = self.so_far[j].double()


def add_rows(result: Add, table: Tensor, where: Tensor, what: Tensor, kernel: Kernel | None = None) -> None:
    """Add (or compare) rows into a table; a kernel adds faster."""
    what = what.to(table.dtype)
    if result.reduction != "sum":
        table.scatter_reduce_(result.dim, where, what, result.reduction)
    elif result.by_element:
        table.scatter_add_(result.dim, where, what)
    elif kernel is not None:
        kernel.add(table, where, what)
    else:
        table.index_add_(result.dim, where, what)


def _many_to_few(table: Tensor | None, dim: int, rows: int) -> bool:
    if table is None:
        return False
    few = table.numel() <= FEW and table.dtype in _SINGLE
    return few and rows >= MANY * (table.shape[dim] if table.dim() else 1)


_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "amax": torch.maximum,
    "amin": torch.minimum,
}
