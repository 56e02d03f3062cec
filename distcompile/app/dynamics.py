"""Relaxation and molecular dynamics with ASE's optimisers and integrators, guarded, logged and resumable.

Every rank runs the same steps on the same structure; the first rank alone writes files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from ..errors import DistcompileError, InputError, SimulationError, in_one_line
from ..runtime.world import is_first
from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .launch import is_collective
from .records import frames, log_lines
from .sanity import Guard

SLOWER = "Use a shorter --timestep or a lower --temperature, or relax first."
"""The advice for a trajectory that goes wrong."""
GENTLER = "Start from a structure that is nearer to rest, or take another --optimizer."
"""The advice for a relaxation that goes wrong."""


class Ensemble(StrEnum):
    """The quantities that are held constant.

    Each is an integrator of ASE's without random numbers, so that a run can be resumed.
    """

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
    """Files of a simulation; None for those that are not written."""

    trajectory: Path | None = None
    log: Path | None = None
    interval: int = 10
    """Steps between two frames of the trajectory and two lines of the log."""


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """The settings of a relaxation."""

    optimizer: Optimizer = Optimizer.fire
    fmax: float = 0.05
    """Largest force that is left, in eV/A."""
    steps: int = 500
    cell: bool = False
    """True if the cell relaxes too."""
    pressure: float = 0.0
    """The pressure on the cell, in GPa."""


@dataclasses.dataclass(frozen=True)
class Md:
    """The settings of a trajectory."""

    ensemble: Ensemble = Ensemble.nve
    steps: int = 1000
    timestep: float = 1.0
    """The time step, in fs."""
    temperature: float = 300.0
    """The temperature of the thermostat, and of the velocities if the structure has none, in K."""
    pressure: float = 0.0
    """The pressure of the barostat, in GPa."""
    seed: int = 0
    """The seed of the velocities."""
    checkpoint: Path | None = None
    checkpoint_every: int = 100

    def identity(self, calculator: str) -> dict[str, Any]:
        """The settings in which a run that resumes this one must agree."""
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
        True if the forces (and the stress) came below `how.fmax`, and the number of steps.

    Raises:
        SimulationError: energy or forces are not finite, or atoms are on top of each other.
    """
    import ase.optimize
    from ase.filters import FrechetCellFilter

    if how.cell:
        _need_cell(atoms, "--relax-cell")
    guard = Guard(atoms, GENTLER)
    guard.check_distances(0)
    moving = FrechetCellFilter(atoms, scalar_pressure=how.pressure * units.GPa) if how.cell else atoms
    log = str(output.log) if output.log is not None and is_first() else None
    optimizer = getattr(ase.optimize, how.optimizer)(moving, logfile=log)
    add_frame = frames(output.trajectory, atoms)

    def after_step() -> None:
        step = optimizer.nsteps
        guard.check_results(step)
        guard.check_distances(step)
        if step % output.interval == 0:
            add_frame()
        on_step(step)

    optimizer.attach(after_step)
    converged = bool(_guarded(lambda: optimizer.run(fmax=how.fmax, steps=how.steps), lambda: optimizer.nsteps, GENTLER))
    if optimizer.nsteps % output.interval:
        add_frame()
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
    if atoms.get_number_of_degrees_of_freedom() <= 0:
        raise SimulationError("Constraints hold every atom: nothing can move. Take some out of the structure.")
    run = how.identity(calculator)
    start = _start(atoms, how, run, resume)
    dynamics = _integrator(atoms, how)
    if start is not None:
        checkpoints.restore_integrator(dynamics, start.state)
        dynamics.nsteps = start.step
    first = dynamics.nsteps
    guard = Guard(atoms, SLOWER)
    guard.check_distances(first)
    kept = first // output.interval + 1 if start is not None else 0
    add_frame = frames(output.trajectory, atoms, kept)
    add_line = log_lines(output.log, dynamics, atoms, how.ensemble is Ensemble.npt, kept)

    def after_step() -> None:
        step = dynamics.nsteps
        guard.check_results(step)
        guard.check_distances(step)
        if how.ensemble is Ensemble.npt:
            atoms.get_stress()  # on every rank, so that the log of the first finds it
        if step % output.interval == 0:
            add_frame()
            add_line()
        if how.checkpoint is not None and is_first() and step > first and _is_due(how, step):
            checkpoints.write(how.checkpoint, _checkpoint(atoms, dynamics, run))
        on_step(step)

    if first:
        on_step(first)
    dynamics.attach(after_step)
    _guarded(lambda: dynamics.run(max(0, how.steps - first)), lambda: dynamics.nsteps + 1, SLOWER)
    return first


def _start(atoms: Atoms, how: Md, run: dict[str, Any], resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; without one, velocities for a structure that has none.

    Files of other programs have velocities of zero if nothing moved. A thermostat scales velocities, and could never
    warm these. Without a thermostat, atoms at rest are a start like any other.
    """
    if resume:
        assert how.checkpoint is not None
        return checkpoints.resume(how.checkpoint, atoms, run)
    at_rest = not atoms.get_momenta().any()
    drawn = f"velocities are drawn at {how.temperature:g} K, seed {how.seed}."
    said = ""
    if not atoms.has("momenta"):
        _draw_velocities(atoms, how)
        said = f"The structure has no velocities: {drawn}"
    elif at_rest and how.ensemble is not Ensemble.nve:
        _draw_velocities(atoms, how)
        said = f"All atoms of the structure are at rest: {drawn}"
    elif at_rest:
        said = "All atoms of the structure are at rest, and start so."
    if said and is_first():
        print(said, flush=True)
    return None


def _draw_velocities(atoms: Atoms, how: Md) -> None:
    """Give atoms velocities at a temperature, with the centre of mass at rest. A single atom keeps its own."""
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

    MaxwellBoltzmannDistribution(atoms, temperature_K=how.temperature, rng=np.random.RandomState(how.seed))
    if len(atoms) > 1 and how.temperature > 0:  # else no velocities are left that could be scaled
        Stationary(atoms)


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


def _guarded(work: Callable[[], Any], step: Callable[[], int], cure: str) -> Any:
    """Run `work`.

    If the model refuses a structure, or the calculator or a file fails, raise an error that names the step.
    """
    try:
        return work()
    except InputError as error:
        raise SimulationError(f"Step {step()}: {error}") from error
    except DistcompileError:
        raise
    except OSError as error:
        raise SimulationError(
            f"Step {step()}: a file cannot be read or written: {error}. Make room for it, or let it be reached."
        ) from error
    except Exception as error:  # calculators raise whatever their tables raise
        if is_collective(error):
            raise
        raise SimulationError(f"Step {step()}: the calculator fails: {in_one_line(error)}. {cure}") from error


def _need_cell(atoms: Atoms, option: str) -> None:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise SimulationError(f"{option} needs a structure that is periodic along all three axes.")
    if "stress" not in atoms.calc.implemented_properties:
        raise SimulationError(f"{option} needs a stress, and {type(atoms.calc).__name__} has none.")
