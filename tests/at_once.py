"""Threads that start at once and do a work each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 240
"""Seconds after which a test takes threads to hang."""


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each work returns, all started at once, each in a thread of its own."""
    results: list[Any] = [None] * len(works)
    problems: list[BaseException] = []
    start = threading.Barrier(len(works))

    def main(i: int) -> None:
        try:
            start.wait()
            results[i] = works[i]()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=main, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if problems:
        raise problems[0]
    return results
