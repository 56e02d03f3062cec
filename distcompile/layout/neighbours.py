"""Neighbours of some atoms, found by vesin; pairs a little farther apart are kept while atoms move.

    owned atoms ──> they and all images of atoms that may be near ──> pairs within cutoff + skin ──> those within it

Pairs are in the order of their atoms' numbers and images, so nothing depends on when they were found.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .structure import Structure

SKIN = 0.5
"""Pairs this much farther apart than the cutoff are kept, too (A)."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of atoms: the second one, in an image of its cell, is near the first one. Every pair is there both ways."""

    atoms: Tensor
    """Global numbers of the atoms: owned ones first, then others, both ascending.  # Shape: [n], int64"""
    n_owned: int
    first: Tensor  # Shape: [n_pairs], int64, local numbers
    second: Tensor  # Shape: [n_pairs], int64
    images: Tensor
    """The cells by which the second atom is moved.  # Shape: [n_pairs, 3], float64"""
    mirror: Tensor
    """The same pair the other way round.  # Shape: [n_pairs], int64"""
    keys: Tensor
    """A number for each pair, the same on all ranks.  # Shape: [n_pairs], int64"""

    def some(self, chosen: Tensor) -> Pairs:
        """The pairs at these places (ascending), of which each has its mirror among them."""
        numbers = torch.empty(len(self.first), dtype=torch.int64)
        numbers[chosen] = torch.arange(len(chosen))
        mirror = numbers[self.mirror[chosen]]
        each = self.first[chosen], self.second[chosen], self.images[chosen]
        return Pairs(self.atoms, self.n_owned, *each, mirror, self.keys[chosen])


class Neighbours:
    """Pairs within a cutoff while atoms move: candidates are kept until one of them may be missing."""

    def __init__(self, cutoff: float, owned: Tensor | None, second: float = 0.0) -> None:
        """
        Args:
            cutoff: the largest distance of a pair, A.
            owned: the atoms whose pairs are wanted; None for all.
            second: the largest distance of pairs that are wanted of the atoms which are as near to owned ones, A.
        """
        self.cutoff, self.owned, self.second = cutoff, owned, second
        self._found: tuple[Structure, Pairs] | None = None
        self._inside: Tensor | None = None
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._pairs: Pairs | None = None
        self.made: dict[Any, dict[Any, Tensor]] = {}
        """What others made of the present pairs; empty again when they change."""

    def __call__(self, structure: Structure) -> tuple[Pairs, Tensor]:
        """The pairs within the cutoff, and the vectors from first to second atoms (A).  # Shape: [n_pairs, 3]

        While no pair comes or goes, the pairs are the same object.
        """
        if self._found is None or not self._holds(structure, self._found[0]):
            second = self.second + SKIN if self.second else 0.0
            self._found = structure, find(structure, self.owned, self.cutoff + SKIN if self.cutoff else 0.0, second)
            self._inside = self._pairs = None
        pairs = self._found[1]
        vectors = vectors_of(structure, pairs)
        inside = vectors.pow(2).sum(1) <= self.cutoff**2
        inside = inside & inside[pairs.mirror]  # both or none, however they are rounded
        if self._inside is None or not torch.equal(inside, self._inside):
            self._inside, self._chosen = inside, inside.nonzero().flatten()
            self._pairs, self.made = pairs.some(self._chosen), {}
        assert self._pairs is not None
        return self._pairs, vectors[self._chosen]

    def _holds(self, now: Structure, then: Structure) -> bool:
        """True if no pair within the cutoff is missing among the candidates that were found then."""
        if len(now) != len(then) or now.pbc != then.pbc or not torch.equal(now.numbers, then.numbers):
            return False
        if torch.equal(now.cell, then.cell):
            strain, before = 0.0, then.positions
        else:
            growth = torch.linalg.solve(then.full_cell, now.full_cell)
            before = then.positions @ growth
            strain = float(torch.linalg.matrix_norm(growth - torch.eye(3, dtype=growth.dtype), 2))
        moved = float((now.positions - before).pow(2).sum(1).max().sqrt()) if len(now) else 0.0
        return (self.cutoff + SKIN) * (1 - strain) - 2 * moved >= self.cutoff


def without_pairs(n_atoms: int) -> Pairs:
    """All atoms of a structure, and no pairs."""
    none = torch.empty(0, dtype=torch.int64)
    return Pairs(torch.arange(n_atoms), n_atoms, none, none, torch.empty(0, 3, dtype=torch.float64), none, none)


def vectors_of(structure: Structure, pairs: Pairs) -> Tensor:
    """The vectors from first to second atoms, A.  # Shape: [n_pairs, 3], float64"""
    positions = structure.positions[pairs.atoms]
    vectors = positions.index_select(0, pairs.second) - positions.index_select(0, pairs.first)
    return torch.addmm(vectors, pairs.images, structure.cell) if any(structure.pbc) else vectors


def find(structure: Structure, owned: Tensor | None, reach: float, second: float = 0.0) -> Pairs:
    """All pairs of owned atoms within reach (A); and of those within `second` of an owned one, pairs as short as that.

    If none is owned, those are all atoms.
    """
    if owned is None:
        atoms = torch.arange(len(structure))
        return _ordered(structure, atoms, len(atoms), *_pairs_of_all(structure, reach))
    first, second_atoms, images = _pairs_of_some(structure, owned, reach, second)
    first, second_atoms = torch.cat([first, second_atoms]), torch.cat([second_atoms, first])
    images = torch.cat([images, -images])
    keys = keys_of(len(structure), first, second_atoms, images)
    ascending, order = keys.sort()
    new = torch.ones(len(keys), dtype=torch.bool)
    new[1:] = ascending[1:] != ascending[:-1]
    chosen = order[new]
    first, second_atoms, images = first[chosen], second_atoms[chosen], images[chosen]
    is_owned = torch.zeros(len(structure), dtype=torch.bool)
    is_owned[owned] = True
    others = torch.zeros(len(structure), dtype=torch.bool)
    others[first] = True
    atoms = torch.cat([owned, (others & ~is_owned).nonzero().flatten()])
    return _ordered(structure, atoms, len(owned), first, second_atoms, images)


def _ordered(structure: Structure, atoms: Tensor, n_owned: int, first: Tensor, second: Tensor, images: Tensor) -> Pairs:
    """Pairs (global numbers) in the order of their first atoms' local numbers, then of their keys."""
    keys = keys_of(len(structure), first, second, images)
    local = torch.full((len(structure),), -1, dtype=torch.int64)
    local[atoms] = torch.arange(len(atoms))
    by_key = keys.argsort()
    order = by_key[local[first[by_key]].argsort(stable=True)] if n_owned < len(atoms) else by_key
    keys, first, second, images = keys[order], first[order], second[order], images[order]
    turned = keys_of(len(structure), second, first, -images)
    if n_owned < len(atoms):
        ascending, places = keys.sort()
        mirror = places[torch.searchsorted(ascending, turned)]
    else:
        mirror = torch.searchsorted(keys, turned)
    return Pairs(atoms, n_owned, local[first], local[second], images, mirror, keys)


def keys_of(n_atoms: int, first: Tensor, second: Tensor, images: Tensor) -> Tensor:
    """One number for each pair: its atoms' global numbers and the image, as digits."""
    bits = (62 - 2 * max(n_atoms - 1, 1).bit_length()) // 3
    if len(images) and int(images.abs().max()) >= 2 ** (bits - 1):
        raise InputError(
            f"An atom's neighbours are more than {2 ** (bits - 1)} cells away from it, since atoms are far outside of "
            "the cell. Bring them into it: atoms.wrap()."
        )
    moved = images.long() + 2 ** (bits - 1)
    keys = first * n_atoms + second
    for axis in range(3):
        keys = (keys << bits) + moved[:, axis]
    return keys


def _pairs_of_all(structure: Structure, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    from vesin import NeighborList

    if not len(structure) or reach <= 0:
        nothing = torch.empty(0, dtype=torch.int64)
        return nothing, nothing, torch.empty(0, 3, dtype=torch.float64)
    box = _roomy(structure, reach)
    search = NeighborList(cutoff=reach, full_list=True, n_threads=torch.get_num_threads())
    i, j, shift = search.compute(structure.positions.numpy(), box.numpy(), list(structure.pbc), quantities="ijS")
    return tuple(torch.from_numpy(x.astype(t)) for x, t in ((i, np.int64), (j, np.int64), (shift, np.float64)))  # type: ignore[return-value]


def _roomy(structure: Structure, reach: float) -> Tensor:
    """The cell, with room around all atoms along vectors that are not periodic."""
    box = structure.full_cell.clone()
    span = structure.fractional.amax(0) - structure.fractional.amin(0)
    for axis, periodic in enumerate(structure.pbc):
        if not periodic:
            box[axis] *= float(span[axis]) + 2 * reach / float(box[axis].norm()) + 1
    return box


def _pairs_of_some(structure: Structure, core: Tensor, reach: float, second: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs whose first atom is in the core: found among images of atoms in boxes near the core's, as in free space.

    And pairs of what is within `second` of the core.
    """
    from vesin import NeighborList

    if not len(core) or reach <= 0:
        nothing = torch.empty(0, dtype=torch.int64)
        return nothing, nothing, torch.empty(0, 3, dtype=torch.float64)
    atoms, images, n_core = _around(structure, core, max(reach, 2 * second))
    points = structure.positions[atoms] + images @ structure.cell
    search = NeighborList(cutoff=reach, full_list=True, n_threads=torch.get_num_threads())
    i, j, d = search.compute(points.numpy(), np.zeros((3, 3)), False, quantities="ijd")
    first, other = torch.from_numpy(i.astype(np.int64)), torch.from_numpy(j.astype(np.int64))
    wanted = first < n_core
    if second:
        short = torch.from_numpy(d) <= second
        is_near = torch.zeros(len(atoms), dtype=torch.bool)
        is_near[other[wanted & short]] = True
        wanted |= short & is_near[first]
    chosen = wanted.nonzero().flatten()
    first, other = first[chosen], other[chosen]
    return atoms[first], atoms[other], images[other] - images[first]


def _around(structure: Structure, core: Tensor, reach: float) -> tuple[Tensor, Tensor, int]:
    """Atoms with images: those of the core, in the cell at the origin, and all others that may be within reach."""
    cell = structure.full_cell
    turns = structure.turns
    fractional = structure.fractional - turns
    heights = 1 / torch.linalg.inv(cell).norm(dim=0)  # distances of opposite faces
    low, high = fractional[core].amin(0), fractional[core].amax(0)
    margin = reach / heights
    # Boxes along each axis over the room that the core takes, and those within reach of it.
    counts = [max(1, math.floor(float((high - low)[a] * heights[a]) / reach)) for a in range(3)]
    widths = ((high - low) / torch.tensor(counts)).clamp(min=1e-9)
    reaches = [math.ceil(float(margin[a] / widths[a])) if counts[a] > 1 else 1 for a in range(3)]

    def boxes(points: Tensor) -> list[Tensor]:
        return [((points[:, a] - low[a]) / widths[a]).floor().long().clamp(0, counts[a] - 1) for a in range(3)]

    occupied = torch.zeros(counts, dtype=torch.bool)
    occupied[tuple(boxes(fractional[core]))] = True
    near = torch.nn.functional.pad(occupied[None, None].float(), [x for r in reversed(reaches) for x in (r, r)])
    near = torch.nn.functional.max_pool3d(near, [2 * r + 1 for r in reaches], 1, [*reaches])[0, 0] > 0
    atoms, images = [core], [-turns[core]]
    is_core = torch.zeros(len(structure), dtype=torch.bool)
    is_core[core] = True
    spans = [
        range(math.floor(float(low[a] - margin[a])), math.floor(float(high[a] + margin[a])) + 1)
        if structure.pbc[a]
        else (0,)
        for a in range(3)
    ]
    for image in itertools.product(*spans):
        here = torch.ones(len(structure), dtype=torch.bool)
        moved = fractional + torch.tensor(image, dtype=torch.float64)
        here &= ((moved >= low - margin) & (moved <= high + margin)).all(1)
        if image == (0, 0, 0):
            here &= ~is_core
        chosen = here.nonzero().flatten()
        places = []
        for a in range(3):
            box = ((moved[chosen, a] - low[a]) / widths[a]).floor().long()
            if counts[a] == 1:
                box = torch.where(moved[chosen, a] < low[a], -1, torch.where(moved[chosen, a] > high[a], 1, 0))
            else:
                box = torch.where(moved[chosen, a] <= high[a], box.clamp(max=counts[a] - 1), box)
            places.append((box + reaches[a]).clamp(0, near.shape[a] - 1))
        chosen = chosen[near[tuple(places)]]
        atoms.append(chosen)
        images.append(torch.tensor(image, dtype=torch.float64) - turns[chosen])
    return torch.cat(atoms), torch.cat(images), len(core)
