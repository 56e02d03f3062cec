"""Checkpoints of a trajectory: one file, replaced whole or not at all.

A checkpoint is a NumPy archive without pickles. Its parts carry checksums, so a file that was cut short is noticed.
The integrators are deterministic, so there is no state of a random number generator to keep.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ..errors import CheckpointError
from ..files import replacing

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a trajectory after a step."""

    step: int
    run: dict[str, Any]
    """The settings that two runs must share to be the same: calculator, ensemble, time step (fs), temperature (K),
    ..."""
    numbers: np.ndarray
    positions: np.ndarray
    """Shape: [n_atoms, 3], in A."""
    momenta: np.ndarray
    """Shape: [n_atoms, 3], in ASE's units."""
    cell: np.ndarray
    state: dict[str, np.ndarray]
    """Variables of the integrator, and of its thermostat and barostat."""


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside the old one, make sure that it is on the disk, then put it in the old one's place.

    Raises:
        CheckpointError: it could not be written; the old one is as it was.
    """
    header = json.dumps({"format": FORMAT, "step": checkpoint.step, "run": checkpoint.run})
    arrays = {name: getattr(checkpoint, name) for name in ("numbers", "positions", "momenta", "cell")}
    arrays |= {f"state {name}": value for name, value in checkpoint.state.items()}
    try:
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, header=np.array(header), **arrays)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of step {checkpoint.step} cannot be written to {path}: {error.strerror or error}. "
            f"{last(path) or 'There is no earlier one.'} Make room, or choose another folder, and use --resume."
        ) from error


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            if header["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} was written by another version of distcompile (format {header['format']}, this one reads "
                    f"{FORMAT}). Resume it with that version."
                )
            state = {n.removeprefix("state "): archive[n] for n in archive.files if n.startswith("state ")}
            arrays = {name: archive[name] for name in ("numbers", "positions", "momenta", "cell")}
            return Checkpoint(step=header["step"], run=header["run"], state=state, **arrays)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path} to resume from. Leave out --resume to start.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is no checkpoint, or was cut short ({error}). Delete it and start again, or restore a copy."
        ) from error


def resume(path: Path, atoms: Atoms, run: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint and put a structure into its state.

    Args:
        path: the file.
        atoms: the structure that the run started from; positions, momenta and cell are changed.
        run: what the run that resumes is, as in `Checkpoint.run`.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of another structure or another run.
    """
    found = read(path)
    if len(found.numbers) != len(atoms):
        raise CheckpointError(
            f"{path} is a checkpoint of {len(found.numbers)} atoms, the structure has {len(atoms)}. Give the structure "
            "(and --repeat) that the run was started with, or another --checkpoint."
        )
    if (found.numbers != atoms.numbers).any():
        atom = int((found.numbers != atoms.numbers).argmax())
        raise CheckpointError(
            f"{path} is a checkpoint of another structure: atom {atom} has atomic number {found.numbers[atom]} there, "
            f"{atoms.numbers[atom]} here. Give the structure that the run was started with."
        )
    for name in {**found.run, **run}:
        if found.run.get(name) != run.get(name):
            raise CheckpointError(
                f"{path} is a checkpoint of another run: {name} is {found.run.get(name)} there, {run.get(name)} here. "
                "Use the options that the run was started with, or another --checkpoint."
            )
    atoms.set_cell(found.cell)
    atoms.set_positions(found.positions, apply_constraint=False)
    atoms.set_momenta(found.momenta, apply_constraint=False)
    return found


def last(path: Path | None) -> str:
    """A sentence on the checkpoint that a run left behind; empty if it left none."""
    if path is None:
        return ""
    try:
        return f"The last checkpoint is {path}, of step {read(path).step}."
    except CheckpointError:
        return ""


def integrator_state(dynamics: Any) -> dict[str, np.ndarray]:
    """The variables of an ASE integrator and of its thermostat and barostat."""
    return {
        f"{part}.{name}": np.array(value)
        for part, holder in _parts(dynamics)
        for name, value in vars(holder).items()
        if _is_variable(value)
    }


def restore_integrator(dynamics: Any, state: Mapping[str, np.ndarray]) -> None:
    """Give an integrator the variables that `integrator_state` found.

    Raises:
        CheckpointError: they are of an integrator that has other variables.
    """
    if integrator_state(dynamics).keys() != state.keys():
        raise CheckpointError(
            f"The checkpoint's variables are not those of {type(dynamics).__name__} in this version of ASE. "
            "Resume it with the version of ASE that it was started with."
        )
    for part, holder in _parts(dynamics):
        for name, value in list(vars(holder).items()):
            if _is_variable(value):
                stored = state[f"{part}.{name}"]
                setattr(holder, name, stored.copy() if isinstance(value, np.ndarray) else float(stored))


def _parts(dynamics: Any) -> list[tuple[str, Any]]:
    """An integrator and the objects of ASE's that it is made of, by name."""
    inside = [(name, value) for name, value in vars(dynamics).items() if type(value).__module__.startswith("ase.md.")]
    return [("integrator", dynamics), *inside]


def _is_variable(value: Any) -> bool:
    return isinstance(value, np.ndarray | float)
