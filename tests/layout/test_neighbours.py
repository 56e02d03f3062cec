"""Pairs within a cutoff: those of ASE, for all atoms or for those of ranks, while atoms move."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import structures
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from distcompile.layout.neighbours import SKIN, Neighbours, find
from distcompile.layout.structure import structure_of

CUTOFF = 4.3

STRUCTURES = {
    "crystal": structures.crystal,
    "film": structures.film,
    "film without a third vector": lambda: _without_vector(structures.film()),
    "cluster": structures.cluster,
    "small cell": structures.small_cell,
    "hexagonal": structures.oxide,
    "one atom": lambda: Atoms("Ar", cell=[3.0, 3.1, 3.2], pbc=True, positions=[[7.0, -2.0, 0.1]]),
    "one free atom": lambda: Atoms("Ar"),
    "far outside of the cell": lambda: _moved_by_cells(structures.crystal((2, 1, 1))),
}


def _without_vector(atoms: Atoms) -> Atoms:
    atoms.cell[2] = 0.0
    return atoms


def _moved_by_cells(atoms: Atoms) -> Atoms:
    atoms.positions += np.random.default_rng(1).integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def by_ase(atoms: Atoms) -> Counter:
    """All pairs: (first, second, image)."""
    i, j, shifts = neighbor_list("ijS", atoms, CUTOFF)
    return Counter(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


def ours(pairs: object) -> Counter:
    """The same of what was found."""
    first, second = pairs.atoms[pairs.first].tolist(), pairs.atoms[pairs.second].tolist()
    return Counter(zip(first, second, map(tuple, pairs.images.long().tolist()), strict=True))


@pytest.mark.parametrize("name", STRUCTURES)
def test_all_pairs(name: str) -> None:
    """Each pair once, in the order of its atoms, with its mirror."""
    atoms = STRUCTURES[name]()
    pairs, vectors = Neighbours(CUTOFF, None)(structure_of(atoms))
    assert ours(pairs) == by_ase(atoms)
    assert bool((pairs.first[1:] >= pairs.first[:-1]).all())
    torch.testing.assert_close(vectors[pairs.mirror], -vectors, rtol=0, atol=1e-12)
    assert bool((vectors.norm(dim=1) <= CUTOFF).all())


@pytest.mark.parametrize("second", [0.0, 2.6, CUTOFF])
@pytest.mark.parametrize("name", STRUCTURES)
def test_pairs_of_ranks(name: str, second: float) -> None:
    """A rank gets all pairs of its atoms, and of those near them the shorter ones."""
    atoms = STRUCTURES[name]()
    structure, expected = structure_of(atoms), by_ase(atoms)
    ranks = torch.arange(len(atoms)) * 3 // len(atoms)
    for rank in range(4):  # the last one has no atoms
        owned = (ranks == rank).nonzero().flatten()
        pairs, vectors = Neighbours(CUTOFF, owned, second)(structure)
        found, mine = ours(pairs), set(owned.tolist())
        assert not found - expected
        assert {p: n for p, n in found.items() if p[0] in mine} == {p: n for p, n in expected.items() if p[0] in mine}
        assert bool((pairs.mirror[pairs.mirror] == torch.arange(len(pairs.first))).all())
        assert len(pairs.keys.unique()) == len(pairs.keys)
        if second:
            lengths = dict(zip(_as_tuples(atoms), neighbor_list("d", atoms, CUTOFF).tolist(), strict=True))
            near = mine | {p[1] for p, length in lengths.items() if p[0] in mine and length <= second}
            missing = {p for p, length in lengths.items() if p[0] in near and length <= second} - found.keys()
            assert not missing
        assert vectors.shape == (len(pairs.first), 3)


def _as_tuples(atoms: Atoms) -> list[tuple[int, int, tuple[int, ...]]]:
    i, j, shifts = neighbor_list("ijS", atoms, CUTOFF)
    return list(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist()), strict=True))


@pytest.mark.parametrize("name", ["crystal", "film", "cluster", "small cell"])
def test_atoms_that_move(name: str) -> None:
    """Candidates are kept for a while, and pairs are those of the moment, in the same order as found anew."""
    atoms, chance = STRUCTURES[name](), np.random.default_rng(3)
    owned = torch.arange(len(atoms) // 2)
    all_of_them, some = Neighbours(CUTOFF, None), Neighbours(CUTOFF, owned)
    for step in range(12):
        structure = structure_of(atoms)
        pairs, vectors = all_of_them(structure)
        assert ours(pairs) == by_ase(atoms)
        again, same = Neighbours(CUTOFF, None)(structure)
        assert torch.equal(pairs.keys, again.keys) and torch.equal(vectors, same)
        assert torch.equal(some(structure)[0].keys, Neighbours(CUTOFF, owned)(structure)[0].keys)
        atoms.positions += chance.normal(0, 0.03 if step % 4 else 0.2, atoms.positions.shape)
        if atoms.cell.rank == 3 and step > 5:
            atoms.set_cell(atoms.cell.array * (1 + chance.normal(0, 0.01, (3, 3))), scale_atoms=True)


def test_pairs_stay_the_same_object() -> None:
    """While no pair comes or goes, what was made of them can be kept."""
    atoms = structures.crystal((2, 1, 1))
    neighbours = Neighbours(CUTOFF, None)
    before, _ = neighbours(structure_of(atoms))
    neighbours.made["x"] = {}
    atoms.positions += 1e-6
    assert neighbours(structure_of(atoms))[0] is before and "x" in neighbours.made
    atoms.positions[0] += 1.0
    assert neighbours(structure_of(atoms))[0] is not before and not neighbours.made


def test_candidates_reach_as_far_as_the_skin() -> None:
    """A pair beyond cutoff and skin that comes within the cutoff in one step is found."""
    atoms = Atoms("Ar2", [[0, 0, 0], [CUTOFF + 2 * SKIN, 0, 0]])
    neighbours = Neighbours(CUTOFF, None)
    assert not len(neighbours(structure_of(atoms))[0].first)
    atoms.positions[1, 0] = CUTOFF - 0.01
    assert len(neighbours(structure_of(atoms))[0].first) == 2


def test_atoms_too_many_cells_away() -> None:
    """Pairs have numbers, which hold so many images; the message says what to do."""
    atoms = Atoms("Ar2", [[0, 0, 0], [3.0 * 10**6, 0, 0]], cell=[3, 3, 3], pbc=True)
    with pytest.raises(ValueError, match="wrap"):
        find(structure_of(atoms), None, CUTOFF)
