"""Find a package's rows among ours: edges by their atoms and images, bonds and angles by their edges.

two columns of numbers of atoms, one of images, shifts or vectors    edges: all pairs within a cutoff
a column of numbers of edges, one of each pair                       bonds
a column of numbers of edges, all that are short                     short edges
two columns of numbers of edges, of which both are short             angles
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .neighbours import find, keys_of, vectors_of
from .observed import Described, NoRecipeError, Observation, are_numbers_of, columns
from .part import Part, Rows
from .recipes import ATOMS, EDGES
from .structure import Structure

WIDER = 0.3
"""Pairs this much farther apart than the longest edge are looked at, to see that they are none (A)."""

WHOLE = 1e-3
"""Numbers of cells this close to whole ones are whole: they may come from vectors in single precision."""

Interval = tuple[float, float]
"""Lengths that are within a cutoff, and lengths that are not."""

Column = tuple[int, int]
"""A leaf, and one of its columns."""

Images = Callable[[Structure, Tensor, Tensor, Tensor, bool], Tensor | None]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the rows of all index spaces are."""

    kinds: dict[str, Rows]
    intervals: dict[str, Interval]
    """What is known of the cutoff of each space that has one."""
    parts: list[Part]
    """The structures with their edges."""
    ours: list[dict[str, Tensor]]
    """For each structure and space, our number of each of the package's rows."""
    cutoff: float
    """Of edges; 0 if there are none."""


def find_rows(leaves: Sequence[Described], observations: Sequence[Observation], cutoffs: Mapping[str, float]) -> Found:
    """What the rows of the graph object's tensors are.

    Args:
        leaves: the leaves of the graph object.
        observations: what the package made of them.
        cutoffs: cutoffs that are known exactly, by space.

    Raises:
        NoRecipeError: some are none that are known.
    """
    finder = _Finder(leaves, observations, cutoffs)
    spaces = dict.fromkeys(leaf.space for leaf in leaves if leaf.space and leaf.needed)
    unknown = [space for space in spaces if space != "atoms"]
    cutoff = 0.0
    if unknown:
        edges = finder.find_edges(unknown)
        unknown.remove(edges)
        cutoff = finder.cutoff(edges)
    else:
        finder.parts = [_part(o.structure, 0.0) for o in observations]
    for ours, o in zip(finder.ours, observations, strict=True):
        ours["atoms"] = torch.arange(len(o.structure))
    while unknown:
        found = next((space for space in unknown if finder.find(space, edges)), None)
        if found is None:
            raise NoRecipeError(
                f"its rows of {' and '.join(unknown)} are neither edges, nor bonds, nor angles of these"
            )
        unknown.remove(found)
    return Found(finder.kinds, finder.intervals, finder.parts, finder.ours, cutoff)


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A way to read edges from columns."""

    first: Column
    second: Column
    vector: int | None
    """The leaf that tells the image of the second atom; None if nothing is periodic."""
    images: Images
    sign: float
    wrapped: bool


class _Finder:
    def __init__(
        self, leaves: Sequence[Described], observations: Sequence[Observation], cutoffs: Mapping[str, float]
    ) -> None:
        self._leaves, self._observations, self._cutoffs = leaves, observations, cutoffs
        self.kinds: dict[str, Rows] = {"atoms": ATOMS}
        self.intervals: dict[str, Interval] = {}
        self.parts: list[Part] = []
        self.ours: list[dict[str, Tensor]] = [{} for _ in observations]

    def cutoff(self, space: str) -> float:
        """The cutoff of a space, or what is in the middle of what is known of it."""
        low, high = self.intervals[space]
        return self._cutoffs.get(space, (low + high) / 2)

    def _columns(self, at: int, leaf: int) -> Tensor:
        return columns(self._observations[at].tensors[leaf], self._leaves[leaf])

    def _numbers(self, space: str, rows: int) -> list[Column]:
        """Columns of a space that may hold numbers of so many rows."""
        found = []
        for i, leaf in enumerate(self._leaves):
            if leaf.needed and leaf.space == space and _is_whole_numbers(self._observations[0].tensors[i]):
                values = self._columns(0, i)
                found += [(i, c) for c in range(values.shape[1]) if are_numbers_of(values[:, c], rows)]
        return found

    def find_edges(self, spaces: Sequence[str]) -> str:
        """Find the space whose rows are all pairs of atoms within a cutoff."""
        for space in spaces:
            for reading in self._readings(space):
                pairs = [self._pairs(reading, at) for at in range(len(self._observations))]
                known = [p for p in pairs if p is not None]
                if len(known) < len(pairs):
                    continue
                low, high = max(p[0] for p in known), min(p[1] for p in known)
                if not low < high < float("inf"):
                    continue
                self.intervals[space], self.kinds[space] = (low, high), EDGES
                self.parts = [_part(o.structure, self.cutoff(space)) for o in self._observations]
                for ours, part, (*_, keys) in zip(self.ours, self.parts, known, strict=True):
                    if len(part.pairs.keys) != len(keys):
                        raise NoRecipeError(f"the edges are not those within {self.cutoff(space)} A")
                    ours[space] = torch.searchsorted(part.pairs.keys, keys)
                return space
        raise NoRecipeError(f"its rows of {' and '.join(spaces)} are not all pairs of atoms within a distance")

    def _readings(self, space: str) -> Iterator[_Reading]:
        """Ways to read the atoms and the images of edges from the columns of a space."""
        leaves = enumerate(self._leaves)
        mine = [i for i, leaf in leaves if leaf.needed and leaf.space == space]
        vectors = [i for i in mine if self._columns(0, i).shape[1] == 3]
        forms = list(itertools.product((_as_images, _as_shifts, _as_vectors), (1.0, -1.0), (False, True)))
        for one, two in itertools.combinations(self._numbers(space, len(self._observations[0].structure)), 2):
            for vector, (form, sign, wrapped) in itertools.product(vectors, forms):
                yield _Reading(one, two, vector, form, sign, wrapped)
            if not any(any(o.structure.pbc) for o in self._observations):
                yield _Reading(one, two, None, _as_images, 1.0, False)

    def _pairs(self, reading: _Reading, at: int) -> tuple[float, float, Tensor] | None:
        """The edges of a structure, see `_pairs_within`; None if they cannot be read in this way."""
        structure = self._observations[at].structure
        first, second = (self._columns(at, i)[:, c].long() for i, c in (reading.first, reading.second))
        if not (are_numbers_of(first, len(structure)) and are_numbers_of(second, len(structure))):
            return None
        if reading.vector is None:
            given = torch.zeros(len(first), 3, dtype=torch.float64)
        else:
            given = reading.sign * self._columns(at, reading.vector).double()
        images = reading.images(structure, first, second, given, reading.wrapped)
        return None if images is None else _pairs_within(structure, first, second, images)

    def find(self, space: str, edges: str) -> bool:
        """Find what the rows of a space are, from its columns of numbers of edges."""
        pointing = self._numbers(space, len(self.ours[0][edges]))
        return any(
            self._are_bonds(space, edges, one) or self._are_short_edges(space, edges, one) for one in pointing
        ) or any(self._are_angles(space, edges, one, two) for one, two in itertools.permutations(pointing, 2))

    def _edges_in(self, at: int, edges: str, column: Column) -> Tensor | None:
        """Our numbers of the edges in a column; None if they are no numbers of edges."""
        theirs = self._columns(at, column[0])[:, column[1]].long()
        ours = self.ours[at][edges]
        return ours[theirs] if are_numbers_of(theirs, len(ours)) else None

    def _are_bonds(self, space: str, edges: str, column: Column) -> bool:
        numbers = []
        for at, part in enumerate(self.parts):
            edge = self._edges_in(at, edges, column)
            if edge is None:
                return False
            bonds = part.number_of_edge(Rows("bonds"))[edge]
            if len(bonds) != part.count(Rows("bonds")) or len(bonds.unique()) != len(bonds):
                return False
            numbers.append(bonds)
        return self._are(space, Rows("bonds"), numbers)

    def _are_short_edges(self, space: str, edges: str, column: Column) -> bool:
        low, high, chosen = 0.0, float("inf"), []
        for at, part in enumerate(self.parts):
            edge = self._edges_in(at, edges, column)
            if edge is None or len(edge.unique()) != len(edge):
                return False
            rest = torch.ones(len(part.lengths), dtype=torch.bool)
            rest[edge] = False
            low = max([low, *part.lengths[edge].tolist()])
            high = min([high, *part.lengths[rest].tolist()])
            chosen.append(edge)
        if not low < high or high == float("inf"):
            return False
        self.intervals[space] = low, high
        rows = Rows("short edges", self.cutoff(space))
        return self._are(space, rows, [p.number_of_edge(rows)[e] for p, e in zip(self.parts, chosen, strict=True)])

    def _are_angles(self, space: str, edges: str, one: Column, two: Column) -> bool:
        found, low, high = [], 0.0, float("inf")
        for at, part in enumerate(self.parts):
            a, b = self._edges_in(at, edges, one), self._edges_in(at, edges, two)
            if a is None or b is None or bool((part.pairs.first[a] != part.pairs.first[b]).any()):
                return False
            found.append((a, b))
            low = max([low, *part.lengths[a].tolist(), *part.lengths[b].tolist()])
        for part in self.parts:
            shortest = torch.full((len(part.structure),), float("inf"), dtype=torch.float64)
            shortest.scatter_reduce_(0, part.pairs.first, part.lengths, "amin")
            longer = part.lengths > low  # these make angles if another edge of their atom is as short
            longer &= shortest[part.pairs.first] < part.lengths
            high = min([high, *part.lengths[longer].tolist()])
        if not low < high or high == float("inf"):
            return False
        self.intervals[space] = low, high
        rows = Rows("angles", self.cutoff(space))
        numbers = []
        for part, (a, b) in zip(self.parts, found, strict=True):
            n = len(part.lengths)
            ours = part.angle_edges(rows)
            keys, order = (ours[:, 0] * n + ours[:, 1]).sort()
            theirs = a * n + b
            if len(theirs) != len(keys) or not torch.equal(theirs.sort().values, keys):
                return False
            numbers.append(order[torch.searchsorted(keys, theirs)])
        return self._are(space, rows, numbers)

    def _are(self, space: str, rows: Rows, numbers: Sequence[Tensor]) -> bool:
        self.kinds[space] = rows
        for ours, found in zip(self.ours, numbers, strict=True):
            ours[space] = found
        return True


def _part(structure: Structure, cutoff: float) -> Part:
    pairs = find(structure, None, cutoff)
    return Part(structure, pairs, vectors_of(structure, pairs))


def _pairs_within(
    structure: Structure, first: Tensor, second: Tensor, images: Tensor
) -> tuple[float, float, Tensor] | None:
    """The longest pair, the shortest other one, and the keys of the pairs: None if there are shorter others."""
    vectors = structure.positions[second] - structure.positions[first] + images @ structure.cell
    longest = float(vectors.norm(dim=1).max()) if len(first) else 0.0
    around = find(structure, None, longest + WIDER)
    keys, n = keys_of(len(structure), first, second, images), len(first)
    if len(keys.unique()) != n:
        return None
    there = torch.isin(around.keys, keys)
    if int(there.sum()) != n:
        return None
    others = vectors_of(structure, around).norm(dim=1)[~there]
    return longest, min(others.tolist(), default=float("inf")), keys


def _as_images(s: Structure, first: Tensor, second: Tensor, given: Tensor, wrapped: bool) -> Tensor | None:
    images = given.round()
    if bool((images - given).abs().gt(WHOLE).any()):
        return None
    if wrapped:
        images = images - s.turns[second] + s.turns[first]
    periodic = torch.tensor(s.pbc)
    return images if not bool(images[:, ~periodic].any()) else None


def _as_shifts(s: Structure, first: Tensor, second: Tensor, given: Tensor, wrapped: bool) -> Tensor | None:
    return _as_images(s, first, second, torch.linalg.solve(s.full_cell.T, given.T).T, wrapped)


def _as_vectors(s: Structure, first: Tensor, second: Tensor, given: Tensor, wrapped: bool) -> Tensor | None:
    return None if wrapped else _as_shifts(s, first, second, given - s.positions[second] + s.positions[first], False)


def _is_whole_numbers(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
