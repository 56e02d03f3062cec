"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file, to write to. It takes the file's place when all is written; else the file stays as it was.

    The name ends as the file's does, since writers take format and compression from there. A link stays a link.
    """
    path = Path(os.path.realpath(path))
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield unfinished
        _sync(unfinished)  # before it gets its name, in case the machine stops
        if path.exists():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)  # or the rename may not last
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make the content of a file, or the new names in a folder, last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
