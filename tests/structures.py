"""Structures that the tests run models on: each with atoms off their sites, so that no force is zero by symmetry."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule


def rattled(atoms: Atoms, seed: int = 1, by: float = 0.08) -> Atoms:
    """Displace every atom; drop what would tie the structure to a calculator."""
    atoms = atoms.copy()
    atoms.rattle(by, seed=seed)
    return atoms


def crystal(repeat: tuple[int, int, int] = (3, 2, 2), vacancy: bool = True) -> Atoms:
    """Rocksalt MgO, periodic, with one vacancy."""
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(repeat)
    if vacancy:
        del atoms[3]
    return rattled(atoms)


def film(vacuum: float = 12.0) -> Atoms:
    """A copper slab with an adsorbed oxygen, periodic in the plane only."""
    atoms = fcc111("Cu", (3, 3, 3), a=3.61, vacuum=vacuum, orthogonal=False)
    atoms += Atoms("O", [atoms.positions[-1] + [0.5, 0.6, 1.4]])
    atoms.pbc = (True, True, False)
    return rattled(atoms, 2)


def cluster() -> Atoms:
    """An ethanol molecule and a water molecule beside it, without a cell."""
    atoms = molecule("CH3CH2OH")
    water = molecule("H2O")
    water.translate([0.0, 3.2, 0.4])
    atoms += water
    atoms.pbc = False
    return rattled(atoms, 3, 0.05)


def small_cell() -> Atoms:
    """Five atoms in a cell smaller than every cutoff: each atom neighbours its own images."""
    atoms = Atoms(
        "SrTiO3", cell=np.diag([3.905, 3.905, 4.0]), pbc=True,
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )  # fmt: skip
    return rattled(atoms, 4)


def oxide() -> Atoms:
    """Layered LiCoO2, hexagonal: other species and another cell than `crystal`."""
    layer = Atoms(
        "Li3Co3O6",
        cell=[2.8161, 2.8161, 14.0536, 90, 90, 120],
        pbc=True,
        scaled_positions=[
            *((a, b, c) for a, b, c in ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3))),
            *((a, b, (c + 0.5) % 1) for a, b, c in ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3))),
            *(
                (a, b, (c + s * 0.2395) % 1)
                for s in (1, -1)
                for a, b, c in ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3))
            ),
        ],
    )
    return rattled(layer.repeat((2, 2, 1)), 5)


def lonely_atom() -> Atoms:
    """Three atoms that neighbour each other and one out of reach of all: on 4 ranks one has no edges."""
    atoms = Atoms("H2OO", [[0, 0, 0], [0.9, 0.1, 0], [0.3, 0.8, 0.2], [30.0, 0, 0]])
    return rattled(atoms, 6, 0.02)


def crystal_in_gas() -> Atoms:
    """A hundred atoms with 18 neighbours each, and as many without any."""
    atoms = crystal((3, 2, 2))
    atoms.cell[0] *= 30.0
    gas = Atoms(f"O{len(atoms)}", positions=[[20.0 + 3.4 * n, 1.0 + n % 3, 2.0] for n in range(len(atoms))])
    return atoms + gas
