"""Stop a simulation whose numbers no longer mean anything, with the step and the atom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import complete_cell
from ase.neighborlist import neighbor_list

from ..errors import SimulationError

CLOSEST = 0.4
"""The closest distance of two atoms, as part of the sum of their covalent radii: H-H 0.25 A, O-H 0.39 A, C-C 0.61 A."""
SAME = 0.001
"""Atoms that are closer than this, in A, are at the same place."""
SKIN = 1.0
"""Pairs are remembered up to this much further apart, in A, so that not every step must look for pairs."""

COMMON = (1, 6, 8, 14, 29)
"""Species of which most models know one. A calculator that fails on all of these fails for another reason."""


class Guard:
    """Looks at energy, forces and distances of a structure that moves.

    Args:
        atoms: the structure, with its calculator.
        cure: the advice for a structure that has gone wrong, a sentence.

    Looking for close pairs takes time; having found how much room the closest pair has, `check` looks again only
    when the atoms and the cell have moved enough to use it up.
    """

    def __init__(self, atoms: Atoms, cure: str = "Check the structure: its cell, its units.") -> None:
        self._atoms, self._cure = atoms, cure
        self._radii = covalent_radii[atoms.numbers] * CLOSEST
        self._reach = 2 * float(self._radii.max(initial=0.0)) + SKIN
        self._room = -1.0
        self._scaled = np.zeros((0, 3))
        self._cell = np.eye(3)
        self.searches = 0
        """The number of times that pairs were looked for."""

    def check_distances(self, step: int) -> None:
        """Raise `SimulationError` if two atoms are on top of each other."""
        cell = complete_cell(self._atoms.cell.array)
        if self._room > 0 and self._moved(cell) < self._room:
            return
        self.searches += 1
        one, two, lengths = neighbor_list("ijd", self._atoms, self._reach)
        room = lengths - self._radii[one] - self._radii[two]
        self._room = min(float(room.min(initial=SKIN)), SKIN)
        self._cell, self._scaled = cell, np.linalg.solve(cell.T, self._atoms.positions.T).T
        if self._room < 0:
            worst = int(room.argmin())
            a, b = int(one[worst]), int(two[worst])
            both = f"Step {step}: atoms {a} ({self._symbol(a)}) and {b} ({self._symbol(b)}) are"
            if lengths[worst] < SAME and not step:
                raise SimulationError(f"{both} at one place. Take one of them out, or correct their positions.")
            raise SimulationError(f"{both} {lengths[worst]:.3f} A apart, closer than any model describes. {self._cure}")

    def check_results(self, step: int) -> None:
        """Raise `SimulationError` if the energy or a force is not a finite number."""
        forces = self._atoms.get_forces(apply_constraint=False)
        energy = self._atoms.get_potential_energy()
        finite = np.isfinite(forces).all(axis=1)
        if not finite.all():
            atom = int((~finite).argmax())
            raise SimulationError(
                f"Step {step}: the force on atom {atom} ({self._symbol(atom)}) is {forces[atom]}. The model does not "
                f"describe this structure. {self._cure}"
            )
        if not np.isfinite(energy):
            raise SimulationError(
                f"Step {step}: the energy is {energy}. The model does not describe this structure. {self._cure}"
            )

    def _moved(self, cell: np.ndarray) -> float:
        """A bound, in A, on how much closer two atoms can have come since pairs were looked for."""
        scaled = np.linalg.solve(cell.T, self._atoms.positions.T).T
        moves = np.linalg.norm((scaled - self._scaled) @ cell, axis=1)
        strain = float(np.linalg.norm(np.linalg.solve(self._cell, cell) - np.eye(3), 2))
        return 2 * float(moves.max(initial=0.0)) + strain * self._reach

    def _symbol(self, atom: int) -> str:
        return str(chemical_symbols[self._atoms.numbers[atom]])


@contextlib.contextmanager
def species_named(atoms: Atoms, calculator: Any, places: Atoms | None = None) -> Iterator[None]:
    """If a calculator fails because it does not know a species, raise a `SimulationError` that names the species.

    The arguments are those of `unknown_species`.
    """
    try:
        yield
    except Exception as error:  # calculators may raise anything
        if unknown := unknown_species(atoms, calculator, places):
            raise SimulationError(unknown) from error
        raise


def unknown_species(atoms: Atoms, calculator: Any, places: Atoms | None = None) -> str:
    """The reason that a calculator failed on a structure, if it is an unknown species: one sentence, or nothing.

    Every species of the structure is tried on its own, in the same places, since each calculator reports the species
    that it knows in another way. All ranks try the same.

    Args:
        atoms: the structure.
        calculator: what failed.
        places: a structure in whose places species are tried, where that one is too large.
    """
    places = atoms if places is None else places
    species: list[int] = list(dict.fromkeys(atoms.numbers.tolist()))
    unknown = [number for number in species if not _evaluates(calculator, places, number)]
    if not unknown or (len(unknown) == len(species) and not any(_evaluates(calculator, places, n) for n in COMMON)):
        return ""
    named = [f"{chemical_symbols[n]} (atom {int((atoms.numbers == n).argmax())})" for n in unknown]
    return f"Step 0: the model does not know {', '.join(named)}. Use a model that was trained on these species."


def _evaluates(calculator: Any, places: Atoms, number: int) -> bool:
    """True if the calculator has an energy for atoms that are all of one species."""
    alone = places.copy()
    alone.numbers[:] = number
    try:
        alone.calc = calculator
        alone.get_potential_energy()
    except Exception:  # calculators may raise anything
        return False
    return True
