"""Files that the command line writes: replaced whole or not at all, with results of this run and of no other method."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OTHER_NAMES = {"force", "virial", "virials", "total_energy", "potential_energy"}
"""The names that files have for results beside those of ASE."""


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


def unwritable(path: Path, replaced: bool = True) -> str:
    """The reason that a file cannot be written; empty if it can, as far as is known before it is tried.

    Args:
        path: the file.
        replaced: True if it is replaced; else lines are added, which devices take as well.
    """
    real = Path(os.path.realpath(path))
    if real.is_dir() or (replaced and real.exists() and not real.is_file()):
        return f"Results cannot be written to {path}: it is a {'folder' if real.is_dir() else 'device'}, not a file."
    if real.exists() and not os.access(real, os.W_OK):
        return f"Results cannot be written to {path}: the file that is there may not be changed."
    if not real.exists() and not (real.parent.is_dir() and os.access(real.parent, os.W_OK)):
        return f"Results cannot be written to {path}: {path.absolute().parent} is no folder that can be written to."
    return ""


def labelled(atoms: Any, results: Mapping[str, Any]) -> Any:
    """A copy of a structure with these results only, without those of another method that its file held."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    found = atoms.copy()
    for held in (found.info, found.arrays):
        for name in [name for name in held if str(name).lower() in {*all_properties, *OTHER_NAMES}]:
            del held[name]
    kept = {name: value for name, value in consistent(results).items() if name in all_properties}
    found.calc = SinglePointCalculator(found, **kept)
    found.calc.name = getattr(atoms.calc, "name", None) or "unknown"
    return found


def consistent(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with the stress as six numbers: some calculators give nine."""
    from ase.stress import full_3x3_to_voigt_6_stress

    if np.shape(results.get("stress", 0)) == (3, 3):
        return {**results, "stress": full_3x3_to_voigt_6_stress(results["stress"])}
    return dict(results)


def _sync(path: Path) -> None:
    """Make the content of a file, or the new names in a folder, last through a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
