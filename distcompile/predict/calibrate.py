"""Measure on this machine what a plan needs: the program on a few atoms of the structure, and a message.

The atoms have the distances that they have in the structure: on numbers that are not to be expected (NaN, atoms on top
of each other) operators were found to be a third faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ..rules.cost import FLOPS_PER_BYTE
from ..runtime.execution.executor import Executor
from ..runtime.execution.preparing import Prepared
from ..runtime.world import LocalWorld
from .account import Work
from .planning import Device, moved

T = TypeVar("T")

SIZES = (16, 64, 256, 1024)
"""Atoms of the systems that are measured."""

LONG = 4.0
"""Seconds of a run above which no larger system is measured."""


def this_machine(graphs: Iterable[tuple[Executor, Prepared]], work: Work) -> Device:
    """The device of this machine, with as many threads for a rank as this process has.

    Args:
        graphs: programs and graph objects of more and more rows; no more are taken when they take long.
        work: see `account.work`.
    """
    curve: dict[float, float] = {}
    said = []
    for executor, prepared in graphs:
        rows = {s.name: np.array(prepared.sizes[s.name]) for s in executor.program.spaces if s.sharded}
        seconds = _seconds(executor, prepared)
        curve[float(moved(work, rows, FLOPS_PER_BYTE))] = max([seconds, *curve.values()])
        said.append(f"{next(iter(rows.values()))} atoms {1e3 * seconds:.3g} ms")
        if seconds > LONG:
            break
    latency, per_byte = network()
    basis = (
        f"measured on this machine, {torch.get_num_threads()} threads a rank: {', '.join(said)} on one rank; gloo "
        f"between two ranks of this machine takes {1e6 * latency:.0f} us a message, {1e-9 / per_byte:.1f} GB/s"
    )
    return Device("cpu", 0.0, tuple(sorted(curve.items())), FLOPS_PER_BYTE, latency, per_byte, basis)


def _seconds(executor: Executor, prepared: Prepared) -> float:
    """The shortest of up to three runs on one rank, after one run to warm up."""
    layout = executor.laid_out(prepared, executor.divide(prepared, 1))
    times: list[float] = []
    while len(times) < 4 and (len(times) < 2 or sum(times) < 3 * LONG):
        start = time.perf_counter()
        LocalWorld(1).run(lambda comm: executor.run_rank(comm, prepared, layout))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """A function's result, and the seconds that it took; of two calls the shorter, if the first takes less than one."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    if seconds < 1:
        start = time.perf_counter()
        result = work()
        seconds = min(seconds, time.perf_counter() - start)
    return result, seconds


def network() -> tuple[float, float]:
    """Seconds of a message and of each of its bytes, between two gloo ranks in threads of this process."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=60)
    # Else it listens on the address of this machine's name, where other machines may reach it.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]  # type: ignore[attr-defined]
    seconds: dict[tuple[int, int], float] = {}
    small, large = 8, 2**22

    def rank_main(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, 2, options)
        for size in (small, large):
            given, found = torch.zeros(2 * size, dtype=torch.uint8), torch.empty(2 * size, dtype=torch.uint8)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                group.alltoall_base(found, given, [], []).wait()  # type: ignore[attr-defined]
                times.append(time.perf_counter() - start)
            seconds[rank, size] = min(times)  # other processes may have used the processor for a while

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latency = max(seconds[0, small], seconds[1, small])
    return latency, max(max(seconds[0, large], seconds[1, large]) - latency, 1e-9) / large
