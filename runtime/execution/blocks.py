"""Blocks of rows side by side: one block a thread, each operator within one thread, results taken in order.

    thread 0   block 0: body, take      block 2: body, take      ...
    thread 1   block 1: body ... take   block 3: body ... take

PyTorch would divide each operator among its threads, but the operators of a block that fits a cache are too short
for that: threads would wait for each other most of the time. Taking results in order keeps sums the same whatever
the threads do.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch


def in_order(count: int, threads: int, work: Callable[[int], Any], take: Callable[[int, Any], None]) -> None:
    """Call ``take(i, work(i))`` for every block `i`: `work` on several threads, `take` one after the other."""
    if min(count, threads) == 1:
        for i in range(count):
            take(i, work(i))
        return
    numbers = itertools.count()
    changed = threading.Condition()
    turn, failed = 0, False
    inference = torch.is_inference_mode_enabled()  # a setting of each thread; tensors made in it change only in it

    def worker() -> None:
        nonlocal turn, failed
        try:
            with torch.inference_mode() if inference else nullcontext():
                while (i := next(numbers)) < count:
                    result = work(i)
                    with changed:
                        changed.wait_for(lambda: turn == i or failed)  # noqa: B023  called before i changes
                        if failed:
                            return
                        take(i, result)
                        del result
                        turn += 1
                        changed.notify_all()
        except BaseException:
            with changed:
                failed = True
                changed.notify_all()
            raise

    pool = _pool(max(threads, torch.get_num_threads()))  # one pool for short work and long
    futures = [pool.submit(worker) for _ in range(min(count, threads))]
    for future in futures:
        future.exception()  # all have ended before the first failure is reported
    for future in futures:
        future.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that run operators alone and without gradients."""

    def start() -> None:
        torch.get_num_threads()  # a thread takes over the common setting once, when it is first asked for
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        ready.wait()

    ready = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="blocks", initializer=start)
    before = torch.get_num_threads()
    for _ in range(threads):
        pool.submit(int)  # a thread starts when there is something to do
    ready.wait()
    torch.set_num_threads(before)  # the setting of a thread is also that of threads started later
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)
