"""The progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from ..runtime.world import is_first

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


_quiet = False


@contextmanager
def silent() -> Iterator[None]:
    """Show no progress."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def compiling() -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (done, in all) that shows a bar; None if no terminal shows it."""
    if _quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Generating code", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each of `total` steps of equal length. The first rank shows a bar on a terminal."""
    if _quiet or not (is_first() and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


class Rate:
    """The rate at which steps are done. The first call starts the clock, so that compiling does not count."""

    def __init__(self, total: int, atoms: int, timestep: float | None) -> None:
        self._total, self._atoms, self._timestep = total, atoms, timestep
        self._start: tuple[int, float] | None = None

    def __call__(self, step: int) -> str:
        """Steps a second, atoms times steps a second, ns a day and time left (to relax: at most) after a step."""
        now = time.perf_counter()
        if self._start is None or step <= self._start[0]:
            self._start = (step, now)
            return ""
        rate = (step - self._start[0]) / (now - self._start[1])
        left = time.strftime("%H:%M:%S", time.gmtime(max(0, self._total - step) / rate))
        parts = [f"{rate:.3g} steps/s", f"{rate * self._atoms:.3g} atoms*steps/s"]
        if self._timestep is not None:
            parts.append(f"{rate * self._timestep * 1e-6 * 86400:.3g} ns/day")
        return ", ".join([*parts, f"{left} left" if self._timestep is not None else f"at most {left} left"])


@contextmanager
def stepping(title: str, total: int, atoms: int, timestep: float | None = None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of each step that is done; only the first rank shows anything.

    Args:
        title: what is done.
        total: the last step.
        atoms: how many atoms move.
        timestep: in fs, where steps are of time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    rate = Rate(total, atoms, timestep)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    terminal = is_first() and sys.stderr.isatty() and not _quiet
    bar = Progress(*columns, console=Console(stderr=True)) if terminal else None
    task = bar.add_task(title, total=total, rate="") if bar is not None else None
    last = time.perf_counter()

    def done(step: int) -> None:
        nonlocal last
        said = rate(step)
        if bar is not None and task is not None:
            bar.update(task, completed=step, rate=said)
        elif said and is_first() and (step == total or time.perf_counter() - last > EVERY):
            last = time.perf_counter()
            print(f"{title}: step {step} of {total}, {said}", flush=True)

    with bar or nullcontext():
        yield done
