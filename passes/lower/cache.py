"""Where generated code is kept: in a folder that nobody but its user can write, since it is run when it is found again.

Inductor's own choice is a folder of a foreseeable name where everybody may make it first.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
from pathlib import Path

import torch

from ...errors import CacheError

CHOICE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: the folder in which Inductor keeps code; a user's choice is honoured."""
CURE = f"set {CHOICE} to a folder of yours that nobody else may write"


def cache_folder() -> Path:
    """The folder in which this machine keeps compiled code.

    Inductor keeps the code that it generates near it from now on.

    Raises:
        CacheError: others could put code there, or the folder cannot be made.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes seconds to import

    chosen = os.environ.get(CHOICE)
    if not chosen or chosen == default_cache_dir():  # Inductor itself sets the variable to that folder
        chosen = os.environ[CHOICE] = str(_own())
    folder = Path(os.path.abspath(chosen))
    _make(folder)
    _check(Path(os.path.realpath(folder)))
    return folder / "distcompile" / torch.__version__


def _own() -> Path:
    """A folder for this processor in the user's cache folder. Machines with other processors may share the home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise CacheError(f"There is no home to keep generated code in: {CURE}.") from error
    return home / "distcompile" / _processor()


@functools.cache
def _processor() -> str:
    """A name of the processors that run what is compiled for this one."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        about = [line for line in first if line.startswith(("model name", "flags", "Features", "CPU "))]
    except OSError:
        about = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *about]).encode()).hexdigest()[:12]


def _make(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for this user alone."""
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    except OSError as error:
        raise CacheError(f"Generated code cannot be kept in {folder}: {error.strerror or error}; {CURE}.") from error


def _check(folder: Path) -> None:
    """Raise `CacheError` if others can write a folder, or put another in its place."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise CacheError(f"{folder} is user {status.st_uid}'s, and code is run from it: {CURE}.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"Others may write {folder}, and code is run from it: delete it, or {CURE}.")
    trusted = {os.geteuid(), 0, Path("/").stat().st_uid}
    for above in folder.parents:
        status = above.stat()
        exchangeable = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if exchangeable or status.st_uid not in trusted:
            raise CacheError(f"Others may exchange what is in {above}, and code is run from {folder}: {CURE}.")
