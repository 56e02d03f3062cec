"""Small structures that are like a given one: of the same species, as dense, periodic along the same vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SITES = ((2, 2, 3), (1, 2, 2), (3, 2, 2))
"""Sites along each vector of a probe. One of them is smaller than most cutoffs."""

EMPTY = (12.0, 0.0, 12.0)
"""Empty space along directions of each probe that are not periodic (A). A package that takes these to be periodic sees
across it in one of them."""

JUST_ATOMS = 14.0
"""Volume of an atom where no cell says how much it takes (A^3)."""


def probes(atoms: Any) -> list[Any]:
    """Structures to learn from, the same at each call."""
    kinds = len(set(atoms.numbers.tolist()))
    sites = [*SITES[:-1], (*SITES[-1][:2], max(SITES[-1][2], -(-kinds // 6)))]  # of every species an atom
    return [
        _probe(atoms, each, empty, np.random.default_rng(seed))
        for seed, (each, empty) in enumerate(zip(sites, EMPTY, strict=True))
    ]


def _probe(atoms: Any, sites: Sequence[int], empty: float, chance: np.random.Generator) -> Any:
    from ase import Atoms

    n = int(np.prod(sites))
    spacing = _spacing(atoms)
    grid = np.stack(np.meshgrid(*[np.arange(k) for k in sites], indexing="ij"), -1).reshape(-1, 3) + 0.5
    lean = np.eye(3) + chance.uniform(-0.12, 0.12, (3, 3)) * np.outer(atoms.pbc, atoms.pbc)
    cell = lean * np.asarray(sites)[:, None] * spacing
    positions = (grid / sites) @ cell + chance.uniform(-0.13, 0.13, (n, 3)) * spacing
    for axis in range(3):
        if not atoms.pbc[axis]:
            length = float(np.linalg.norm(atoms.cell[axis]))
            cell[axis] = cell[axis] / np.linalg.norm(cell[axis]) * (sites[axis] * spacing + empty) if length else 0.0
    kinds = list(dict.fromkeys(atoms.numbers.tolist()))
    species = [kinds[i % len(kinds)] for i in range(n)]
    chance.shuffle(species)
    positions[: n // 2] += np.asarray(cell)[0] * bool(atoms.pbc[0])  # some atoms are outside of the cell
    probe = Atoms(numbers=species, positions=positions, cell=cell, pbc=atoms.pbc)
    for name, values in atoms.arrays.items():
        if name not in ("numbers", "positions"):
            probe.arrays[name] = values[chance.integers(len(values), size=n)]
    probe.info.update(atoms.info)
    return probe


def _spacing(atoms: Any) -> float:
    """The edge of the cube that an atom takes, A."""
    if atoms.pbc.all() and len(atoms):
        volume = float(atoms.get_volume()) / len(atoms)
        if volume < 4 * JUST_ATOMS:  # more is empty space
            return float(volume ** (1 / 3))
    return float(JUST_ATOMS ** (1 / 3))
