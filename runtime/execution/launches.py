"""Kernels of a device that takes all rows of a region at once: its own threads divide them, not those of the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels import Kernel, Value, address, extent

MOST_BLOCKS = 4096
"""Blocks of threads of a launch, at most: enough to fill a device; each takes rows until none are left."""

Launch = Callable[[Sequence[int], int, Tensor], None]
"""Runs a program: its arguments as numbers of 64 bits, the number of blocks, and a tensor of the device."""

Take = Callable[[Sequence[int], torch.dtype], Tensor]
"""Makes a tensor of a shape and dtype."""


@dataclasses.dataclass(frozen=True)
class Launched(Kernel):
    """A compiled body that a device runs. `library` is its `Launch`, `lanes` are the rows of a block of threads."""

    @property
    def in_stretches(self) -> bool:
        """See `Kernel.in_stretches`."""
        return False

    def empty(self, value: Value, rows: int, room: int, inputs: Sequence[Any]) -> Tensor:
        """See `Kernel.empty`."""
        return value.empty(rows, room, _on(inputs))

    def adds_at_once(self, value: Value, _: int) -> bool:
        """See `Kernel.adds_at_once`; the device adds one number at a time."""
        return value.kind == "add"

    def add(self, table: Tensor, numbers: Tensor, values: Tensor) -> None:
        """See `Kernel.add`."""
        table.index_add_(0, numbers, values)

    def stretches(
        self, inputs: Sequence[Tensor | None], first: int, end: int, threads: int, own: Sequence[bool]
    ) -> tuple[Tensor | None, list[tuple[int, int]]]:
        """See `Kernel.stretches`: all rows are one."""
        return None, [(first, end)]

    def caller(
        self, inputs: Sequence[Tensor | None], order: Tensor | None, results: Sequence[Tensor | None]
    ) -> Callable[[int, int], list[Tensor]]:
        """See `Kernel.caller`."""
        take = _on(inputs)
        there = next(a for a in inputs if a is not None)
        extents, addresses = [extent(a) for a in inputs], [address(a) or 0 for a in inputs]

        def run(first: int, end: int) -> list[Tensor]:
            kept: list[tuple[Tensor, torch.dtype]] = []
            memory: list[int] = []
            numbers: list[int] = []
            for value, given in zip(self.values, results, strict=True):
                numbers.append(0)
                if given is None and value.kind == "add":
                    kept.append((take((end - first,), torch.int64), torch.int64))
                    numbers[-1] = kept[-1][0].data_ptr()
                if given is None:
                    given = value.empty(end - first, take=take) if value.rows else _zero(value, take)
                    kept.append((given, value.dtype))
                memory.append(given.data_ptr())
            blocks = min(MOST_BLOCKS, -(-(end - first) // self.lanes))
            self.library([first, end, *extents, *addresses, *memory, *numbers], blocks, there)
            return [tensor.to(dtype) for tensor, dtype in kept]

        return run


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a device sums numbers of many rows: double precision."""
    return torch.float64 if dtype.is_floating_point else torch.int64


def _zero(value: Value, take: Take) -> Tensor:
    """What a sum over rows is added to."""
    return take(value.shape, summed_in(value.dtype)).zero_()


def _on(inputs: Sequence[Any]) -> Take:
    """A function that makes a tensor of a shape and dtype where inputs are."""
    device = next(a.device for a in inputs if isinstance(a, Tensor))
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)
