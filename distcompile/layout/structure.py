"""A structure, as tensors: all that a graph object may depend on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

Periodicity = tuple[bool, bool, bool]
"""Along which of the cell's vectors a structure repeats."""

Frame = Literal["as given", "wrapped"]
"""Positions as they are, or brought into the cell along its periodic vectors."""

_EDGE = 1e-7
"""Fractional coordinates this far below zero stay where they are when positions are wrapped, as in ASE."""

_OWN = ("numbers", "positions", "momenta", "masses")
"""Arrays of ASE's atoms that are fields of a structure, or have nothing to do with a model."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """Atoms in a cell."""

    positions: Tensor  # Shape: [n_atoms, 3], float64, A
    cell: Tensor  # Shape: [3, 3], float64, A
    pbc: Periodicity
    numbers: Tensor  # Shape: [n_atoms], int64
    arrays: Mapping[str, Tensor]
    """What else the user says of each atom: tags, charges.  # Shape of each: [n_atoms, ...]"""

    def __len__(self) -> int:
        return len(self.numbers)

    def seen_as(self, pbc: Periodicity) -> Structure:
        """The structure, as a package sees it that takes other directions to be periodic."""
        return self if pbc == self.pbc else dataclasses.replace(self, pbc=pbc)

    @functools.cached_property
    def full_cell(self) -> Tensor:
        """The cell, with a vector of length 1 at right angles to the others where there is none.  # Shape: [3, 3]"""
        cell = self.cell.clone()
        for axis in range(3):
            if not bool(cell[axis].any()):
                one, two = cell[axis - 2], cell[axis - 1]
                across = torch.linalg.cross(one, two)
                if not bool(across.any()):  # at least two are missing
                    known = one if bool(one.any()) else two
                    across = torch.eye(3, dtype=cell.dtype)[int(known.abs().argmin())]
                    across = across - known * (across @ known) / (known @ known).clamp(min=1e-300)
                cell[axis] = across / across.norm()
        return cell

    @functools.cached_property
    def fractional(self) -> Tensor:
        """Positions in units of the vectors of `full_cell`.  # Shape: [n_atoms, 3]"""
        return torch.linalg.solve(self.full_cell.T, self.positions.T).T

    @functools.cached_property
    def turns(self) -> Tensor:
        """The cells that each atom is away from the one at the origin; zero where not periodic.  # [n_atoms, 3]"""
        return (self.fractional + _EDGE).floor() * torch.tensor(self.pbc)


def structure_of(atoms: Any) -> Structure:
    """The structure of ASE's atoms.

    Raises:
        InputError: a position or the cell is NaN or infinite.
    """
    for what, values in (("The position of atom", atoms.positions), ("Cell vector", atoms.cell.array)):
        if not np.isfinite(values).all():
            at = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise InputError(f"{what} {at} is NaN or infinite. Check the structure; atoms may have flown apart.")
    arrays = {
        name: torch.from_numpy(np.ascontiguousarray(values))
        for name, values in atoms.arrays.items()
        if name not in _OWN and values.dtype.kind in "biuf"
    }
    pbc = tuple(bool(p) for p in atoms.pbc)
    return Structure(
        torch.tensor(atoms.positions, dtype=torch.float64),
        torch.tensor(np.asarray(atoms.cell), dtype=torch.float64),
        (pbc[0], pbc[1], pbc[2]),
        torch.tensor(atoms.numbers, dtype=torch.int64),
        arrays,
    )


def views(structure: Structure) -> Iterator[Periodicity]:
    """The periodicities that a package may see in a structure: its own; none; all of them.

    Some packages know only crystals and molecules: a film is one of these to them.
    """
    yield structure.pbc
    if any(structure.pbc):
        yield False, False, False
    if not all(structure.pbc) and bool(structure.cell.any(1).all()):
        yield True, True, True
