"""Read the structure that a user named, and refuse what no potential describes, with the fault and the cure."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StructureError

FULL = 1e-3
"""An occupancy this close to one is one."""
ISOTOPE = 0.5
"""Masses of a species differ by less than this, in u, from one source to another."""
AXES = ("first", "second", "third")


def read_structure(named: Path, repeat: tuple[int, int, int]) -> tuple[Any, str]:
    """The structure in a file, repeated.

    Args:
        named: a file that ASE reads; ``file@0``, ``file@-1`` is one of its frames.
        repeat: the number of times along each vector of the cell.

    Returns:
        The structure, and a note for its user on the frame that was taken; empty if there is nothing to note.

    Raises:
        StructureError: there is no such file, it cannot be read, or is of no structure that can be evaluated.
    """
    file, index = _place(named)
    try:
        form = _format(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from readers, about things that do not matter or are refused below
            atoms = _frame(file, index, form)
            note = f"{file} holds several frames: the last is taken. Name another as {file}@0." * (
                index is None and _several(file, form)
            )
    except StructureError:
        raise
    except Exception as error:  # readers of ASE may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise StructureError(f"ASE cannot read {named}: {said}. Check it, or convert it to .extxyz.") from error
    for problem in _problems(atoms, file, form):
        raise StructureError(f"{named}: {problem}")
    return _repeated(atoms, repeat), note


def missing(named: Path) -> str:
    """The reason that there is nothing to read; empty if there is a file."""
    try:
        _place(named)
    except StructureError as error:
        return str(error)
    return ""


def _place(named: Path) -> tuple[Path, str | None]:
    """The file and the frame in a name. The file's own name may hold an @, too."""
    name, at, index = named.name.rpartition("@")
    file, frame = (named, None) if named.exists() or not at else (named.with_name(name), index)
    if not file.exists():
        raise StructureError(f"There is no file {file}.")
    if file.is_dir():
        raise StructureError(f"ASE cannot read {file}: it is a folder. Name a file in it.")
    if file.stat().st_size == 0 and file.is_file():
        raise StructureError(f"ASE cannot read {file}: it is empty.")
    return file, frame


def _format(file: Path) -> str:
    """ASE's name of a file's format. ASE knows LAMMPS' data files only by an ending that is hardly ever used."""
    from ase.io.formats import filetype

    start = _content(file, 4000)
    if re.search(rb"^\s*\d+\s+atoms\b", start, re.M) and re.search(rb"^\s*\d+\s+atom\s+types\b", start, re.M):
        return "lammps-data"
    return str(filetype(str(file)))


def _content(file: Path, size: int = -1) -> bytes:
    """The content of a file, or its start."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(file), "rb") as opened:
        return bytes(opened.read(size))


def _frame(file: Path, index: str | None, form: str) -> Any:
    from ase.io import read

    whole = {"format": form, "do_not_split_by_at_sign": True}
    try:
        found = read(str(file), index=index, **whole)
    except (StopIteration, IndexError, AssertionError) as error:
        if index is None:
            raise
        raise StructureError(f"{file} has no frame {index}: they are counted from 0, or back from -1.") from error
    if isinstance(found, list):
        if len(found) != 1:
            raise StructureError(f"{file}@{index} names {len(found)} frames: name one, such as {file}@0.")
        return found[0]
    return found


def _several(file: Path, form: str) -> bool:
    """True if a file holds more than one frame."""
    from ase.io import read
    from ase.io.formats import get_ioformat

    if get_ioformat(form).single:
        return False
    try:
        read(str(file), index=1, format=form, do_not_split_by_at_sign=True)
    except Exception:  # the file was read before: the failure is the missing frame
        return False
    return True


def _problems(atoms: Any, file: Path, form: str) -> Iterator[str]:
    """The faults of a structure, in the order in which they are told."""
    if len(atoms) == 0:
        yield "it holds no atoms."
    for atom in np.flatnonzero(atoms.numbers == 0):
        yield f"atom {atom} is of no species (X). Give it one, or take it out."
    yield from _types(atoms, file, form)
    yield from _partly_filled(atoms)
    for atom in np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1)):
        yield f"the position of atom {atom} is {atoms.positions[atom]}."
    vectors = atoms.cell.array
    if not np.isfinite(vectors).all():
        yield f"the cell is {vectors.tolist()}."
    for axis in np.flatnonzero(atoms.pbc & ~vectors.any(axis=1)):
        yield (
            f"it is periodic along its {AXES[axis]} cell vector, which is zero. Give the cell that vector, or set pbc "
            "to False along it."
        )
    if np.linalg.matrix_rank(vectors) < vectors.any(axis=1).sum():
        yield f"its cell vectors lie in one plane: {vectors.tolist()}. Correct the cell."


def _types(atoms: Any, file: Path, form: str) -> Iterator[str]:
    """Faults of LAMMPS types. ASE takes them for atomic numbers if the file does not say their species."""
    cure = "Write the file with {}, or convert it to .extxyz with its species."
    if form.startswith("lammps-dump"):
        text = _content(file) if form == "lammps-dump-text" else b""
        if not re.search(rb"^ITEM: ATOMS.*\b(element|mass)\b", text, re.M):
            yield f"it numbers the types of atoms and does not say their species. {cure.format('an element column')}"
    if form != "lammps-data":
        return
    if not atoms.has("masses") and not re.search(rb"^\s*Atom\s+Type\s+Labels\b", _content(file), re.M):
        yield (
            "it has neither masses nor labels of its types of atoms, so nothing says their species. "
            f"{cure.format('a Masses section')}"
        )
    from ase.data import atomic_masses

    if atoms.has("masses"):
        masses = atoms.get_masses()
        for atom in np.flatnonzero(np.abs(atomic_masses[atoms.numbers] - masses) > ISOTOPE):
            kind = atoms.arrays["type"][atom]
            yield f"type {kind} has the mass {masses[atom]:g}, which no species has. {cure.format('masses in u')}"


def _partly_filled(atoms: Any) -> Iterator[str]:
    """Faults of sites that hold no atom or one of several species: readers keep one species, and note the rest."""
    noted = atoms.info.get("occupancy")
    kinds = np.asarray(atoms.arrays.get("spacegroup_kinds", [])).astype(str)
    for kind, held in noted.items() if isinstance(noted, Mapping) else ():
        shares = {str(s): _share(share) for s, share in held.items()} if isinstance(held, Mapping) else {}
        if len(shares) > 1 or any(abs(share - 1) > FULL for share in shares.values()):
            at = np.flatnonzero(kinds == str(kind))
            site = _site(atoms, at[0]) if len(at) else f"site {kind}"
            yield _disorder(site, " and ".join(f"{share:g} {species}" for species, share in shares.items()))
    for name in ("occupancy", "occupancies"):
        values = np.asarray(atoms.arrays.get(name, []), dtype=float)
        # A file that leaves them all at zero has none.
        for atom in np.flatnonzero(np.abs(values - 1) > FULL) if values.ndim == 1 and values.any() else ():
            yield _disorder(_site(atoms, atom), f"{values[atom]:g} {atoms.symbols[atom]}")


def _site(atoms: Any, atom: Any) -> str:
    return f"the site of atom {atom}, at {' '.join(f'{x:.3f}' for x in atoms.positions[atom])} A,"


def _disorder(site: str, held: str) -> str:
    return (
        f"{site} is filled in part or by several species: {held}. A potential needs one atom a site: make an ordered "
        "structure of it, in a larger cell if need be."
    )


def _share(share: Any) -> float:
    """An occupancy; 1 if a file leaves it open ("?", ".")."""
    try:
        return float(share)
    except (TypeError, ValueError):
        return 1.0


def _repeated(atoms: Any, repeat: tuple[int, int, int]) -> Any:
    """A structure repeated along its cell vectors. If it is not repeated, it keeps its constraints and all else."""
    if repeat == (1, 1, 1):
        return atoms
    option = f"--repeat {' '.join(map(str, repeat))}"
    for axis, n in enumerate(repeat):
        if n > 1 and not atoms.cell.array[axis].any():
            raise StructureError(
                f"{option} repeats along the {AXES[axis]} cell vector, and the structure has none. Repeat 1 along it, "
                "or give the cell that vector."
            )
    try:
        return atoms.repeat(repeat)
    except NotImplementedError as error:
        names = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        raise StructureError(
            f"{option} cannot repeat what holds the atoms ({names}). Leave out --repeat, or take the constraints out "
            "of the file."
        ) from error
