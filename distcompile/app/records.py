"""Trajectory and log of a simulation, written by the first rank; those of a run that goes on are continued."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.io.formats import filetype
from ase.io.trajectory import Trajectory

from ..files import replacing
from ..runtime.world import is_first
from .files import labelled


def frames(path: Path | None, atoms: Atoms, kept: int = 0) -> Callable[[], None]:
    """A function that adds a frame to a trajectory, with the results of this run only.

    Args:
        path: the trajectory; nothing is written if None.
        atoms: the structure that moves, with its calculator.
        kept: frames of the old file to keep: the steps after a checkpoint are run again.
    """
    if path is None or not is_first():
        return lambda: None
    continued = kept > 0 and path.exists()
    if continued:
        _cut(path, kept)
    if path.suffix == ".traj":
        writer = Trajectory(path, "a" if continued else "w")
        return lambda: writer.write(labelled(atoms, atoms.calc.results))
    begun = continued

    def add() -> None:
        nonlocal begun
        write(path, labelled(atoms, atoms.calc.results), format=filetype(str(path), read=False), append=begun)
        begun = True

    return add


def grows(path: Path) -> bool:
    """True if frames can be added to a file of that name, one at a time; found out with a small one."""
    if path.suffix == ".traj":
        return True
    images = [Atoms("Ar2", [[0.0, 0.0, z], [1.0, 2.0, 3.0]], cell=[4.0, 5.0, 6.0], pbc=True) for z in (0.25, 0.5)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            small = Path(folder) / path.name
            for n, frame in enumerate(images):
                write(small, frame, format=filetype(str(path), read=False), append=n > 0)
            found = read(small, ":", format=filetype(str(path), read=False))
        except Exception:  # writers of ASE raise whatever their format makes them raise
            return False
    return len(found) == 2 and all(
        np.allclose(one.positions, two.positions, atol=1e-3) and np.allclose(one.cell, two.cell, atol=1e-3)
        for one, two in zip(found, images, strict=True)
    )


def log_lines(path: Path | None, dynamics: Any, atoms: Atoms, stress: bool, kept: int = 0) -> Callable[[], None]:
    """A function that adds a line to ASE's log of energies and temperature. Lines of earlier runs stay before it.

    Args:
        path: the log; nothing is written if None.
        dynamics: the integrator.
        atoms: the structure that moves, with its calculator.
        stress: True to add the stress.
        kept: lines of the last run in the file to keep, as in `frames`.
    """
    from ase.md.logger import MDLogger

    if path is None or not is_first():
        return lambda: None
    continued = kept > 0 and path.exists()
    if continued:
        lines = path.read_text().splitlines(keepends=True)
        header = max((n for n, line in enumerate(lines) if line.startswith("Time")), default=0)
        with replacing(path) as unfinished:
            unfinished.write_text("".join(lines[: header + 1 + kept]))
    logger: Callable[[], None] = MDLogger(dynamics, atoms, str(path), header=not continued, stress=stress, mode="a")
    return logger


def _cut(path: Path, kept: int) -> None:
    """Keep only the first frames of a trajectory."""
    if path.suffix != ".traj":
        images = read(path, f":{kept}", format=filetype(str(path), read=False))
        with replacing(path) as unfinished:
            write(unfinished, images, format=filetype(str(path), read=False))
        return
    with Trajectory(path) as old:
        if len(old) > kept:
            with replacing(path) as unfinished, Trajectory(unfinished, "w") as new:
                for frame in range(kept):
                    new.write(old[frame])
