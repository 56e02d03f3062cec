"""What component code is written for: what a program has around the text that all targets share.

The text names what each prelude defines in its own way: memory of a step, turns of a loop, meetings of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from . import library

BYTES = {"F": 4, "D": 8, "I": 8, "B": 4}
"""Bytes of a number of each kind."""


class Target(Protocol):
    """A kind of device."""

    entry: ClassVar[list[str]]
    """The beginning of the function that runs rows."""
    ending: ClassVar[list[str]]
    """What comes after it."""
    registers: ClassVar[int | None]
    """Registers of 32 bits that a loop may fill with its values; what needs more is several loops, of which each
    computes what it needs. None for any number: those of a processor are few, and its cache is near."""
    most_memory: ClassVar[int | None]
    """Bytes that the rows which run side by side may take, with their sums; None for any number."""
    sums_outer_products: ClassVar[bool]
    """True if sums over rows of outer products have a form (`outer`)."""

    def lanes(self, sizes: Mapping[str, int], is_single: bool, /) -> int:
        """Rows that run side by side.

        Args:
            sizes: numbers that the memory of a row holds, by kind.
            is_single: most of what is computed is in single precision.
        """

    def header(self, lanes: int, inputs: int, results: int, /) -> list[str]:
        """What comes before the program's own functions."""

    def summed_in(self, dtype: torch.dtype, /) -> torch.dtype:
        """The dtype of a result that is a sum over rows of numbers of a dtype."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """A CPU: a thread runs a stretch of rows, as many side by side as a vector register holds.

    Compilers take vectors of two registers, too, but keep them in memory.
    """

    instructions: tuple[str, ...] = library.native()
    """The compiler's options for them."""

    prelude: ClassVar[str] = Path(__file__).with_name("prelude.h").read_text()
    registers: ClassVar[int | None] = None
    most_memory: ClassVar[int | None] = None
    sums_outer_products: ClassVar[bool] = True
    entry: ClassVar[list[str]] = [
        'extern "C" void run(int64_t first, int64_t last, const int64_t* order, const void* const* given,',
        "    const int64_t* extent, void* const* results, int64_t* const* numbers, char* scratch) {",
        "    (void)extent; (void)numbers;",
    ]

    ending: ClassVar[list[str]] = []

    def lanes(self, _: Mapping[str, int], is_single: bool, /) -> int:
        """See `Target.lanes`."""
        return library.register_bytes(self.instructions) // (4 if is_single else 8)

    def header(self, lanes: int, *_: int) -> list[str]:
        """See `Target.header`."""
        register = library.register_bytes(self.instructions)
        return [f"#define LANES {lanes}", f"#define REGISTER {register}", self.prelude]

    def summed_in(self, dtype: torch.dtype, /) -> torch.dtype:
        """The dtype itself: what sums of stretches are added up in is the caller's affair."""
        return dtype


PROCESSOR = Processor()
