"""Work beside evaluations, in threads that a process does not wait for when it ends.

A thread that is stopped within an operator of torch takes the whole process down with it. So what calls operators is
done piece by piece, and a process that ends waits for the piece that is under way, no longer.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 30.0
"""Seconds that a process waits at its end, in case a piece never does end."""

_piece = threading.Lock()


@contextmanager
def piece_by_piece() -> Iterator[None]:
    """Do a short piece of work that the process does not end within."""
    with _piece:
        yield


def _anew() -> None:
    """Forget a piece of the parent: its thread does not exist in a child process."""
    global _piece
    _piece = threading.Lock()


atexit.register(lambda: _piece.acquire(timeout=MOST))
os.register_at_fork(after_in_child=_anew)
