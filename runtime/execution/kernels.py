"""Run a region whose body is one compiled loop over rows: no values of a block, but for those that others add up.

threads take stretches of rows; a stretch ends where the row that is added to changes
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

ALIGNED = 128
"""Bytes to a multiple of which memory of vectors is aligned."""
BLOCKS_A_THREAD = 4
"""Stretches of rows for each thread, so that none waits long for the last."""
VALUES_BYTES = 4 * 2**20
"""Bytes that values of a block may take: a share of the cache."""


@dataclasses.dataclass(frozen=True)
class Value:
    """One result of a compiled body."""

    kind: Literal["store", "add", "values", "sum"]
    """store: rows of the region's result. add: added to rows of the region's table, at once or stretch by stretch.
    values: as the body returns them, for a stretch. sum: a part of the region's result, for a stretch."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """The shape of one row's part: of the entries of a row, which come first, if there are rows."""
    rows: bool
    """False for a sum over rows."""
    where: tuple[int, int] | None = None
    """For `add`, the input, and the entry of its rows, that says to which row a row is added; None if none does, or if
    something else is added to the same table."""

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return torch.Size(self.shape).numel()

    def empty(
        self, rows: int, room: int = 0, take: Callable[[Sequence[int], torch.dtype], Tensor] | None = None
    ) -> Tensor:
        """Memory for some rows, and room for more entries after them; new memory unless it is taken from elsewhere."""
        if not self.rows:
            return torch.empty(self.shape, dtype=self.dtype)
        entries, *rest = self.shape
        shape = (rows * entries + room, *rest)
        return torch.empty(shape, dtype=self.dtype) if take is None else take(shape, self.dtype)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled body."""

    library: Any
    """What it was compiled to: a library of this processor."""
    scratch: int
    """Bytes that each thread needs."""
    lanes: int
    """Rows that run side by side."""
    dtypes: tuple[torch.dtype | None, ...]
    """Of the inputs; None for those that are not tensors."""
    rows: tuple[int | None, ...]
    """The dimension of rows of each input; None if it is taken whole."""
    values: tuple[Value, ...]
    device: str = "cpu"
    """The type of the device that its inputs are on."""

    @property
    def in_stretches(self) -> bool:
        """True if it runs over stretches of rows, side by side with others and with other kernels."""
        return True

    def empty(self, value: Value, rows: int, room: int, _: Sequence[Any]) -> Tensor:
        """Memory for a result of all rows, where the inputs are."""
        return value.empty(rows, room)

    @functools.cached_property
    def by_result(self) -> tuple[tuple[Value, ...], ...]:
        """The values of each result of the region: row numbers and rows, where a body returns both, else one."""
        each = iter(self.values)
        return tuple((value, next(each)) if value.kind == "values" else (value,) for value in each)

    @functools.cached_property
    def order(self) -> tuple[int, int] | None:
        """The pointer by which most is added: rows run in its order where several threads add to one table."""
        widths: dict[tuple[int, int], int] = defaultdict(int)
        for value in self.values:
            if value.where is not None:
                widths[value.where] += value.width
        return max(widths, key=lambda where: widths[where], default=None)

    def adds_at_once(self, value: Value, threads: int) -> bool:
        """True if threads add to a table as they go: no two of them add to the same row."""
        return value.kind == "add" and (threads == 1 or (value.where is not None and value.where == self.order))

    def add(self, table: Tensor, numbers: Tensor, values: Tensor) -> None:
        """Add rows of values to rows of a table."""
        if numbers.dtype != torch.int64 or not values.is_floating_point():
            table.index_add_(0, numbers, values)
            return
        add = self.library.add_floats if values.dtype == torch.float32 else self.library.add_doubles
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (values, numbers))
        count, width = ctypes.c_int64(len(numbers)), ctypes.c_int64(values[0].numel())
        add(*pointers, count, width, ctypes.c_void_p(table.data_ptr()))

    def takes(self, inputs: Sequence[Any]) -> bool:
        """True if inputs are of the kinds that it was compiled for; None for those that are not there yet."""
        return all(
            d is None or a is None or (isinstance(a, Tensor) and a.dtype == d and a.device.type == self.device)
            for a, d in zip(inputs, self.dtypes, strict=True)
        )

    def laid_out(self, inputs: Sequence[Any]) -> list[Tensor | None]:
        """Inputs as it reads them: row after row."""
        return [
            None if not isinstance(a, Tensor) else (a if not dim else a.movedim(dim, 0)).contiguous()
            for a, dim in zip(inputs, self.rows, strict=True)
        ]

    def stretches(
        self, inputs: Sequence[Tensor | None], first: int, end: int, threads: int, own: Sequence[bool]
    ) -> tuple[Tensor | None, list[tuple[int, int]]]:
        """The order in which rows run, None for as they are, and the stretches of it that run side by side.

        `own` says of which values a stretch has its own, which are kept until it is their turn.
        """
        size = self._block(end - first, threads, own)
        if threads == 1:
            return None, [(i, min(i + size, end)) for i in range(first, end, size)]
        starts = list(range(first, end, size))
        order = None
        if self.order is not None:
            source, entry = self.order
            pointer = inputs[source]
            assert pointer is not None
            target = pointer.reshape(pointer.shape[0], -1)[first:end, entry].contiguous()
            if bool((target[1:] < target[:-1]).any()):
                target, order = target.sort(stable=True)
                order += first
                if first:  # positions count from the first row
                    order = torch.cat([order.new_zeros(first), order])
            at = torch.tensor(starts[1:]) - first
            ends = torch.searchsorted(target, target[at - 1], right=True) if len(at) else at
            starts = sorted({first, *(int(e) + first for e in ends if int(e) + first < end)})
        return order, list(zip(starts, [*starts[1:], end], strict=True))

    def _block(self, rows: int, threads: int, own: Sequence[bool]) -> int:
        kept = (v for v, is_own in zip(self.values, own, strict=True) if is_own and v.rows)
        width = sum(v.dtype.itemsize * v.width for v in kept)
        size = rows if threads == 1 else -(-rows // (threads * BLOCKS_A_THREAD))
        if width:
            size = min(size, VALUES_BYTES // width)
        return max(self.lanes, -(-size // self.lanes) * self.lanes)

    def run(
        self,
        first: int,
        end: int,
        inputs: Sequence[int | None],
        extents: Sequence[int],
        results: Sequence[int],
        numbers: Sequence[int | None],
        order: Tensor | None = None,
    ) -> None:
        """Run a stretch of rows, given addresses: of row 0 of inputs and results, and of memory for row numbers."""
        given = (ctypes.c_void_p * len(inputs))(*inputs)
        extent = (ctypes.c_int64 * len(inputs))(*extents)
        to, rows = (ctypes.c_void_p * len(results))(*results), (ctypes.c_void_p * len(results))(*numbers)
        at = None if order is None else ctypes.c_void_p(order.data_ptr())
        scratch = ctypes.c_void_p(_memory(self.scratch))
        self.library.run(ctypes.c_int64(first), ctypes.c_int64(end), at, given, extent, to, rows, scratch)

    def caller(
        self, inputs: Sequence[Tensor | None], order: Tensor | None, results: Sequence[Tensor | None]
    ) -> Callable[[int, int], list[Tensor]]:
        """A function that runs a stretch of rows and returns what it keeps of them.

        `results` are the memory of `store`, and the tables of what is added at once. Of what else is added, row numbers
        are returned, then values.
        """
        given = [address(a) for a in inputs]
        extents = [extent(a) for a in inputs]

        def run(first: int, end: int) -> list[Tensor]:
            kept: list[Tensor] = []
            pointers: list[int] = []
            numbers: list[int | None] = []
            for value, memory in zip(self.values, results, strict=True):
                own = value.empty(end - first) if memory is None else memory
                pointers.append(own.data_ptr())
                numbers.append(None)
                if memory is None and value.kind == "add":
                    kept.append(torch.empty(end - first, dtype=torch.int64))
                    numbers[-1] = kept[-1].data_ptr()
                if memory is None:
                    kept.append(own)
            self.run(first, end, given, extents, pointers, numbers, order)
            return kept

        return run


def address(value: Tensor | None) -> int | None:
    """Where an input begins; None if it is not a tensor."""
    return None if value is None else value.data_ptr()


def extent(value: Tensor | None) -> int:
    """The number of rows from whose end negative row numbers count."""
    return value.shape[0] if value is not None and value.dim() else 0


_LOCAL = threading.local()


def _memory(size: int) -> int:
    """The address of memory of this thread, at least so large."""
    held = getattr(_LOCAL, "memory", None)
    if held is None or held.numel() < size + ALIGNED:
        held = _LOCAL.memory = torch.empty(size + ALIGNED, dtype=torch.uint8)
    address: int = held.data_ptr()
    return -(-address // ALIGNED) * ALIGNED
