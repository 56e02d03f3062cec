"""Python's garbage collection while a graph is captured and rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (50_000, 20, 100)
"""Thresholds of `gc.set_threshold`; Python's own are (700, 10, 10)."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for unused cycles less often: graphs of many small objects that are all in use are made here.

    Python walks through them again with every few thousand new ones, which takes a third of the time of the passes.
    A user who set higher thresholds, or none, keeps them.
    """
    before = gc.get_threshold()
    if 0 < before[0] < SELDOM[0]:
        gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
