"""A GPU as a target: rows in shared memory, and a block of threads for a few of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from .....runtime.execution.launches import summed_in
from ..target import BYTES

THREADS = 256
"""Threads of a block."""
SHARED = 144 * 1024
"""Bytes of shared memory up to which a block takes more rows. Rows of a block read weights together, so many rows are
worth more than a second block on the same multiprocessor."""
MOST_SHARED = 160 * 1024
"""Bytes that a block may take: what an A100 has, and the smallest amount among the cards that are written for."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A CUDA device of compute capability 8.0 or later."""

    registers: ClassVar[int | None] = 150
    most_memory: ClassVar[int | None] = MOST_SHARED
    sums_outer_products: ClassVar[bool] = False
    prelude: ClassVar[str] = Path(__file__).with_name("prelude.cuh").read_text()
    entry: ClassVar[list[str]] = [
        "#ifdef EMULATED",
        "static const Arguments* under_way;",
        "static void run() {",
        "    const Arguments& a = *under_way;",
        "#else",
        'extern "C" __global__ void __launch_bounds__(THREADS, 1) run(const __grid_constant__ Arguments a) {',
        "    extern __shared__ __align__(128) char memory[];",
        "#endif",
        "    const int64_t first = a.first, last = a.last, *const order = nullptr, *const extent = a.extent;",
        "    const void* const* const given = a.given;",
        "    void* const* const results = a.results;",
        "    int64_t* const* const numbers = a.numbers;",
        "    char* const scratch = memory;",
    ]

    ending: ClassVar[list[str]] = [
        "#ifdef EMULATED",
        'extern "C" bool launch(const Arguments* a, int blocks, bool descending) {',
        "    under_way = a;",
        "    return launch_blocks(run, blocks, descending);",
        "}",
        "#endif",
    ]

    def lanes(self, sizes: Mapping[str, int], _: bool, /) -> int:
        """See `Target.lanes`."""
        row = sum(n * BYTES[kind] for kind, n in sizes.items())
        lanes = 32
        while lanes > 1 and lanes * row > SHARED:
            lanes //= 2
        return lanes

    def header(self, lanes: int, inputs: int, results: int) -> list[str]:
        """See `Target.header`."""
        return [
            f"#define LANES {lanes}",
            f"#define THREADS {THREADS}",
            f"#define RESULTS {max(results, 1)}",
            self.prelude,
            "struct Arguments {",
            f"    int64_t first, last, extent[{max(inputs, 1)}];",
            f"    const void* given[{max(inputs, 1)}];",
            "    void* results[RESULTS];",
            "    int64_t* numbers[RESULTS];",
            "};",
        ]

    def summed_in(self, dtype: torch.dtype, /) -> torch.dtype:
        """See `Target.summed_in`: blocks add to one sum."""
        return summed_in(dtype)


GPU = Gpu()
