"""A progress bar while code is generated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def compiling() -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (done, in all) that shows a bar; None where nobody looks at a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Generating code", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
