"""Relaxation and molecular dynamics with ASE's optimisers and integrators, guarded, logged and resumable.

Every rank runs the same steps on the same structure; the first rank alone writes files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io.trajectory import Trajectory

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .errors import InputError, SimulationError
from .guards import Guard
from .runtime.world import is_first


class Ensemble(StrEnum):
    """What is held constant: each an integrator of ASE's without random numbers, so that a run can be resumed."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


class Optimizer(StrEnum):
    """ASE's optimisers."""

    fire = "FIRE"
    bfgs = "BFGS"
    lbfgs = "LBFGS"


@dataclasses.dataclass(frozen=True)
class Output:
    """Files of a simulation; none if None."""

    trajectory: Path | None = None
    log: Path | None = None
    interval: int = 10
    """Steps between two frames of the trajectory and two lines of the log."""


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """How to relax a structure."""

    optimizer: Optimizer = Optimizer.fire
    fmax: float = 0.05
    """Largest force that is left, in eV/A."""
    steps: int = 500
    cell: bool = False
    """Whether the cell relaxes too."""
    pressure: float = 0.0
    """On the cell, in GPa."""


@dataclasses.dataclass(frozen=True)
class Md:
    """How to run a trajectory."""

    ensemble: Ensemble = Ensemble.nve
    steps: int = 1000
    timestep: float = 1.0
    """In fs."""
    temperature: float = 300.0
    """In K: of the thermostat, and of the velocities where the structure has none."""
    pressure: float = 0.0
    """Of the barostat, in GPa."""
    seed: int = 0
    """Of the velocities."""
    checkpoint: Path | None = None
    checkpoint_every: int = 100

    def identity(self, calculator: str) -> dict[str, Any]:
        """What a run that resumes this one must agree in."""
        found = {
            "calculator": calculator,
            "ensemble": self.ensemble.value,
            "timestep (fs)": self.timestep,
        }
        if self.ensemble is not Ensemble.nve:
            found["temperature (K)"] = self.temperature
        if self.ensemble is Ensemble.npt:
            found["pressure (GPa)"] = self.pressure
        return found


def relax(atoms: Atoms, how: Relaxation, output: Output, on_step: Callable[[int], None]) -> tuple[bool, int]:
    """Relax a structure in place.

    Args:
        atoms: the structure, with its calculator.
        how: optimiser and what to reach.
        output: files to write.
        on_step: called after every step with its number.

    Returns:
        Whether the forces (and the stress) came below `how.fmax`, and the steps it took.

    Raises:
        SimulationError: energy or forces are not finite, or atoms are on top of each other.
    """
    import ase.optimize
    from ase.filters import FrechetCellFilter

    if how.cell:
        _need_cell(atoms, "--relax-cell")
    guard = Guard(atoms)
    guard.check_distances(0)
    moving = FrechetCellFilter(atoms, scalar_pressure=how.pressure * units.GPa) if how.cell else atoms
    log = str(output.log) if output.log is not None and is_first() else None
    optimizer = getattr(ase.optimize, how.optimizer)(moving, logfile=log)
    writer = _writer(output.trajectory, atoms, fresh=True)

    def after_step() -> None:
        step = optimizer.nsteps
        guard.check_results(step)
        guard.check_distances(step)
        if writer is not None and step % output.interval == 0:
            writer.write(atoms)
        on_step(step)

    optimizer.attach(after_step)
    converged = bool(_guarded(lambda: optimizer.run(fmax=how.fmax, steps=how.steps), lambda: optimizer.nsteps + 1))
    if writer is not None and optimizer.nsteps % output.interval:
        writer.write(atoms)
    return converged, int(optimizer.nsteps)


def run_md(
    atoms: Atoms, how: Md, output: Output, on_step: Callable[[int], None], *, calculator: str = "", resume: bool = False
) -> int:
    """Run a trajectory in place, from the structure's velocities or from a checkpoint.

    Args:
        atoms: the structure, with its calculator.
        how: ensemble, steps and checkpoint.
        output: files to write; those of a run that is resumed are continued from the checkpoint on.
        on_step: called with the number of every step that is done, the first time before the first.
        calculator: name of the calculator, kept in checkpoints.
        resume: go on from `how.checkpoint`, to the same trajectory.

    Returns:
        The step it started from.

    Raises:
        SimulationError: energy or forces are not finite, or atoms are on top of each other.
        CheckpointError: a checkpoint cannot be read or written, or is of another run.
    """
    if how.ensemble is Ensemble.npt:
        _need_cell(atoms, "--ensemble npt")
    if atoms.constraints and how.ensemble is not Ensemble.nve:
        raise SimulationError("The structure has constraints, which the thermostats ignore: use --ensemble nve.")
    run = how.identity(calculator)
    start = _start(atoms, how, run, resume)
    dynamics = _integrator(atoms, how)
    if start is not None:
        checkpoints.restore_integrator(dynamics, start.state)
        dynamics.nsteps = start.step
    first = dynamics.nsteps
    guard = Guard(atoms)
    guard.check_distances(first)
    writer = _writer(output.trajectory, atoms, fresh=start is None, frames=first // output.interval + 1)
    log = _logger(output, dynamics, atoms, how.ensemble is Ensemble.npt, start)

    def after_step() -> None:
        step = dynamics.nsteps
        guard.check_results(step)
        guard.check_distances(step)
        if how.ensemble is Ensemble.npt:
            atoms.get_stress()  # on every rank, so that the log of the first finds it
        if step % output.interval == 0:
            if writer is not None:
                writer.write(atoms)
            if log is not None:
                log()
        if how.checkpoint is not None and is_first() and step > first and _is_due(how, step):
            checkpoints.write(how.checkpoint, _checkpoint(atoms, dynamics, run))
        on_step(step)

    if first:
        on_step(first)
    dynamics.attach(after_step)
    _guarded(lambda: dynamics.run(max(0, how.steps - first)), lambda: dynamics.nsteps + 1)
    return first


def _start(atoms: Atoms, how: Md, run: dict[str, Any], resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; without one, velocities for a structure that has none."""
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    if resume:
        assert how.checkpoint is not None
        return checkpoints.resume(how.checkpoint, atoms, run)
    if not atoms.has("momenta"):
        MaxwellBoltzmannDistribution(atoms, temperature_K=how.temperature, rng=np.random.RandomState(how.seed))
        Stationary(atoms)
    return None


def _integrator(atoms: Atoms, how: Md) -> Any:
    """ASE's integrator for an ensemble; damping times are ASE's advice, 100 and 1000 time steps."""
    from ase.md.nose_hoover_chain import MTKNPT, NoseHooverChainNVT
    from ase.md.verlet import VelocityVerlet

    step = how.timestep * units.fs
    if how.ensemble is Ensemble.nve:
        return VelocityVerlet(atoms, step)
    if how.ensemble is Ensemble.nvt:
        return NoseHooverChainNVT(atoms, step, temperature_K=how.temperature, tdamp=100 * step)
    pressure = how.pressure * units.GPa
    return MTKNPT(atoms, step, temperature_K=how.temperature, pressure_au=pressure, tdamp=100 * step, pdamp=1000 * step)


def _is_due(how: Md, step: int) -> bool:
    return step % how.checkpoint_every == 0 or step == how.steps


def _checkpoint(atoms: Atoms, dynamics: Any, run: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        step=int(dynamics.nsteps),
        run=run,
        numbers=atoms.numbers.copy(),
        positions=atoms.positions.copy(),
        momenta=atoms.get_momenta(),
        cell=atoms.cell.array.copy(),
        state=checkpoints.integrator_state(dynamics),
    )


def _guarded(work: Callable[[], Any], step: Callable[[], int]) -> Any:
    """Run `work`; say at which step the model refused a structure."""
    try:
        return work()
    except InputError as error:
        raise SimulationError(f"Step {step()}: {error}") from error


def _need_cell(atoms: Atoms, option: str) -> None:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise SimulationError(f"{option} needs a structure that is periodic along all three axes.")
    if "stress" not in atoms.calc.implemented_properties:
        raise SimulationError(f"{option} needs a stress, and {type(atoms.calc).__name__} has none.")


def _writer(path: Path | None, atoms: Atoms, fresh: bool, frames: int = 0) -> Any:
    """Something whose `write` adds a frame; on the first rank only. Of an old file, `frames` frames are kept."""
    if path is None or not is_first():
        return None
    if fresh or not path.exists():
        return Trajectory(path, "w", atoms)
    with Trajectory(path) as old:
        longer = len(old) > frames
    if longer:  # steps after the checkpoint are run again
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with Trajectory(path) as old, Trajectory(temporary, "w") as new:
            for frame in range(frames):
                new.write(old[frame])
        os.replace(temporary, path)
    return Trajectory(path, "a", atoms)


def _logger(output: Output, dynamics: Any, atoms: Atoms, stress: bool, start: Checkpoint | None) -> Any:
    """ASE's log of energies and temperature, on the first rank only."""
    from ase.md.logger import MDLogger

    if output.log is None or not is_first():
        return None
    continued = start is not None and output.log.exists()
    if continued:
        lines = output.log.read_text().splitlines(keepends=True)
        output.log.write_text("".join(lines[: dynamics.nsteps // output.interval + 2]))  # a header and step 0
    return MDLogger(
        dynamics, atoms, str(output.log), header=not continued, stress=stress, mode="a" if continued else "w"
    )
