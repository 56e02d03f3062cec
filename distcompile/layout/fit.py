"""Fit recipes to what a package made of some structures.

Rows of a package come in an order of its own, so they are first found among ours: edges by their atoms and images,
bonds and angles by their edges. Then each tensor is compared with what each recipe makes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import DistcompileError
from .layout import Layout, LeafRecipe
from .neighbours import find, keys_of, vectors_of
from .part import Part, Rows
from .recipes import ATOMS, EDGES, Recipe, Same, Table, of_angles, of_atoms, of_edges, without_rows
from .structure import Structure

WIDER = 0.3
"""Pairs this much farther apart than the longest edge are looked at, to see that they are none (A)."""

WHOLE = 1e-3
"""Numbers of cells this close to whole ones are whole: they may come from vectors in single precision."""

Interval = tuple[float, float]
"""Lengths that are within a cutoff, and lengths that are not."""


class NoRecipeError(DistcompileError):
    """A tensor that no recipe gives; the message says which."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a package made of a structure."""

    structure: Structure
    tensors: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Described:
    """What the compiled program knows of a leaf of the graph object."""

    path: str
    spaces: tuple[str, ...]
    """For each dimension, the index space that it ranges over; empty if none."""
    needed: bool
    """False if the program does not read it."""

    @property
    def space(self) -> str:
        """The space of its rows; empty if it has none.

        Raises:
            NoRecipeError: it has rows of several.
        """
        found = [space for space in self.spaces if space]
        if len(found) > 1:
            raise NoRecipeError(f"{self.path} has rows of {' and '.join(found)}")
        return found[0] if found else ""


def told_by_size(leaves: Sequence[Described], observations: Sequence[Observation]) -> list[Described]:
    """The leaves, with spaces for dimensions that the program does not tell: those that have as many rows everywhere.

    Of positions that are only looked up in the integer part of a program, the rows are not seen to be atoms.
    """
    known: dict[tuple[int, ...], str] = {tuple(len(o.structure) for o in observations): "atoms"}
    for at, leaf in enumerate(leaves):
        for dim, space in enumerate(leaf.spaces):
            if space:
                known.setdefault(tuple(o.tensors[at].shape[dim] for o in observations), space)
    found = []
    for at, leaf in enumerate(leaves):
        sizes = [tuple(o.tensors[at].shape[dim] for o in observations) for dim in range(len(leaf.spaces))]
        spaces = [s or (known.get(n, "") if len(set(n)) > 1 else "") for s, n in zip(leaf.spaces, sizes, strict=True)]
        found.append(dataclasses.replace(leaf, spaces=tuple(spaces)))
    return found


def columns(tensor: Tensor, leaf: Described) -> Tensor:
    """A tensor with its rows first, and all other dimensions as columns.  # Shape: [rows, columns]"""
    if not leaf.space:
        return tensor.reshape(1, -1)
    rows = tensor.movedim(leaf.spaces.index(leaf.space), 0)
    return rows.reshape(rows.shape[0], -1) if rows.numel() else rows.new_empty(rows.shape[0], rows[:1].numel() or 1)


def fit(
    leaves: Sequence[Described], observations: Sequence[Observation], cutoffs: Mapping[str, float] | None = None
) -> tuple[Layout, dict[str, Interval]]:
    """The layout that gives what was observed, and for each space that has a cutoff what is known of it.

    Args:
        leaves: the leaves of the graph object.
        observations: at least two, of different structures.
        cutoffs: cutoffs that are known exactly, by space.

    Raises:
        NoRecipeError: there is none.
    """
    return _Fitter(leaves, observations, cutoffs or {}).fit()


class _Fitter:
    def __init__(
        self, leaves: Sequence[Described], observations: Sequence[Observation], cutoffs: Mapping[str, float]
    ) -> None:
        self.leaves, self.observations, self.cutoffs = leaves, observations, cutoffs
        self.kinds: dict[str, Rows] = {"atoms": ATOMS}
        self.intervals: dict[str, Interval] = {}
        self.ignored: list[tuple[int, int, int]] = []
        self.parts: list[Part] = []
        self.ours: list[dict[str, Tensor]] = [{} for _ in observations]
        """For each observation and space, our number of each of the package's rows."""

    def fit(self) -> tuple[Layout, dict[str, Interval]]:
        spaces = dict.fromkeys(leaf.space for leaf in self.leaves if leaf.space and leaf.needed)
        others = [space for space in spaces if space != "atoms"]
        if others:
            self._find_edges(others)
        else:
            self.parts = [_part(o.structure, 0.0) for o in self.observations]
        for ours, part in zip(self.ours, self.parts, strict=True):
            ours["atoms"] = torch.arange(len(part.structure))
        unknown = [space for space in others if space not in self.kinds]
        while unknown:
            found = next((space for space in unknown if self._find_rows(space)), None)
            if found is None:
                raise NoRecipeError(
                    f"its rows of {' and '.join(unknown)} are neither edges, nor bonds, nor angles of these"
                )
            unknown.remove(found)
        made = tuple(self._leaf(at, leaf) for at, leaf in enumerate(self.leaves))
        cutoff = max((i[0] for i in self.intervals.values()), default=0.0)
        edges = next((s for s, rows in self.kinds.items() if rows == EDGES), None)
        if edges is not None:
            cutoff = self._cutoff(edges)
        return Layout(cutoff, self.kinds, made, tuple(self.ignored)), self.intervals

    def _cutoff(self, space: str) -> float:
        low, high = self.intervals[space]
        return self.cutoffs.get(space, (low + high) / 2)

    def _integers(self, at: int, space: str) -> Iterator[tuple[int, int, Tensor]]:
        """Columns of integers of a space in an observation: (leaf, column, values)."""
        for i, leaf in enumerate(self.leaves):
            tensor = self.observations[at].tensors[i]
            if leaf.needed and leaf.space == space and _is_whole_numbers(tensor):
                for c, values in enumerate(columns(tensor, leaf).unbind(1)):
                    yield i, c, values.long()

    def _column(self, at: int, leaf: int, column: int) -> Tensor:
        return columns(self.observations[at].tensors[leaf], self.leaves[leaf])[:, column].long()

    def _find_edges(self, spaces: Sequence[str]) -> None:
        """Find the space whose rows are all pairs of atoms within a cutoff."""
        for space in spaces:
            for readings in self._readings(space):
                found = [readings(o, at) for at, o in enumerate(self.observations)]
                if any(pair is None for pair in found):
                    continue
                pairs = [_pairs_within(o.structure, *p) for o, p in zip(self.observations, found, strict=True) if p]
                if any(p is None for p in pairs):
                    continue
                low, high = max(p[0] for p in pairs if p), min(p[1] for p in pairs if p)
                if not low < high < float("inf"):
                    continue
                self.intervals[space], self.kinds[space] = (low, high), EDGES
                self.parts = [_part(o.structure, self._cutoff(space)) for o in self.observations]
                for at, (part, keys) in enumerate(zip(self.parts, (p[2] for p in pairs if p), strict=True)):
                    if len(part.pairs.keys) != len(keys):
                        raise NoRecipeError(f"the edges are not those within {self._cutoff(space)} A")
                    self.ours[at][space] = torch.searchsorted(part.pairs.keys, keys)
                return
        raise NoRecipeError(f"its rows of {' and '.join(spaces)} are not all pairs of atoms within a distance")

    def _readings(self, space: str) -> Iterator[Callable[[Observation, int], tuple[Tensor, Tensor, Tensor] | None]]:
        """Ways to read the atoms and the images of edges from the columns of a space."""
        ends = [(i, c) for i, c, values in self._integers(0, space) if _are_numbers_of(values, self._n_atoms(0))]
        vectors = [
            i for i, leaf in enumerate(self.leaves)
            if leaf.needed and leaf.space == space and columns(self.observations[0].tensors[i], leaf).shape[1] == 3
        ]  # fmt: skip
        for one, two in itertools.combinations(ends, 2):
            for vector in vectors:
                for reads, sign, wrapped in itertools.product(
                    (_as_images, _as_shifts, _as_vectors), (1.0, -1.0), (False, True)
                ):
                    yield lambda o, at, a=one, b=two, v=vector, r=reads, s=sign, w=wrapped: self._read(  # type: ignore[misc]
                        o,
                        at,
                        a,
                        b,
                        lambda first, second: r(
                            o.structure, first, second, s * columns(o.tensors[v], self.leaves[v]).double(), w
                        ),
                    )
            if not any(any(o.structure.pbc) for o in self.observations):
                yield lambda o, at, a=one, b=two: self._read(
                    o, at, a, b, lambda first, _: torch.zeros(len(first), 3, dtype=torch.float64)
                )  # type: ignore[misc]

    def _read(
        self,
        o: Observation,
        at: int,
        a: tuple[int, int],
        b: tuple[int, int],
        images: Callable[[Tensor, Tensor], Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        first, second = self._column(at, *a), self._column(at, *b)
        if not (_are_numbers_of(first, len(o.structure)) and _are_numbers_of(second, len(o.structure))):
            return None
        found = images(first, second)
        return None if found is None else (first, second, found)

    def _n_atoms(self, at: int) -> int:
        return len(self.observations[at].structure)

    def _find_rows(self, space: str) -> bool:
        """Find what the rows of a space are, from its columns of numbers of edges."""
        edges = next(s for s, rows in self.kinds.items() if rows == EDGES)
        pointing = [
            (i, c) for i, c, values in self._integers(0, space) if _are_numbers_of(values, len(self.ours[0][edges]))
        ]
        for i, c in pointing:
            if self._are_bonds(space, edges, i, c) or self._are_short_edges(space, edges, i, c):
                return True
        return any(self._are_angles(space, edges, a, b) for a, b in itertools.permutations(pointing, 2))

    def _edges_in(self, at: int, edges: str, leaf: int, column: int) -> Tensor | None:
        """Our numbers of the edges in a column; None if they are no numbers of edges."""
        theirs = self._column(at, leaf, column)
        ours = self.ours[at][edges]
        return ours[theirs] if _are_numbers_of(theirs, len(ours)) else None

    def _are_bonds(self, space: str, edges: str, leaf: int, column: int) -> bool:
        numbers = []
        for at, part in enumerate(self.parts):
            edge = self._edges_in(at, edges, leaf, column)
            if edge is None:
                return False
            bonds = part.number_of_edge(Rows("bonds"))[edge]
            if len(bonds) != part.count(Rows("bonds")) or len(bonds.unique()) != len(bonds):
                return False
            numbers.append(bonds)
        return self._are(space, Rows("bonds"), numbers)

    def _are_short_edges(self, space: str, edges: str, leaf: int, column: int) -> bool:
        low, high, chosen = 0.0, float("inf"), []
        for at, part in enumerate(self.parts):
            edge = self._edges_in(at, edges, leaf, column)
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
        rows = Rows("short edges", self._cutoff(space))
        return self._are(space, rows, [p.number_of_edge(rows)[e] for p, e in zip(self.parts, chosen, strict=True)])

    def _are_angles(self, space: str, edges: str, one: tuple[int, int], two: tuple[int, int]) -> bool:
        found, low, high = [], 0.0, float("inf")
        for at, part in enumerate(self.parts):
            a, b = self._edges_in(at, edges, *one), self._edges_in(at, edges, *two)
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
        rows = Rows("angles", self._cutoff(space))
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

    def _leaf(self, at: int, leaf: Described) -> LeafRecipe:
        """The recipe of a leaf."""
        example = self.observations[0].tensors[at]
        dim = leaf.spaces.index(leaf.space) if leaf.space else -1
        rest = [n for d, n in enumerate(example.shape) if d != dim]
        rows = self.kinds.get(leaf.space) if leaf.space else None
        if not leaf.needed or not any(o.tensors[at].numel() for o in self.observations):
            return LeafRecipe(leaf.path, rows or ATOMS, dim, tuple(rest), example.dtype, example.device, (), example)
        theirs = []
        for ours, observed in zip(self.ours, self.observations, strict=True):
            rows_of_theirs = columns(observed.tensors[at], leaf)
            theirs.append(_in_our_order(rows_of_theirs, ours[leaf.space]) if leaf.space else rows_of_theirs)
        width = theirs[0].shape[1]
        recipes: list[Recipe] = []
        while (begun := sum(r.width or 0 for r in recipes)) < width:
            found = next(
                (r for r in self._candidates(theirs, begun, width, rows) if self._gives(r, theirs, begun)), None
            )
            if found is None and rows is None and example.is_floating_point():
                size = 3 if (width - begun) % 3 == 0 else 1
                found = Recipe("of no effect", size, Same(theirs[0][:, begun : begun + size].clone(), None))
                self.ignored.append((at, begun, begun + size))
            if found is None:
                raise NoRecipeError(
                    f"{leaf.path}, of type {example.dtype} and shape {tuple(example.shape)}, has no recipe"
                )
            recipes.append(dataclasses.replace(found, width=found.width or width))
        return LeafRecipe(leaf.path, rows, dim, tuple(rest), example.dtype, example.device, tuple(recipes), None)

    def _candidates(self, theirs: Sequence[Tensor], begun: int, width: int, rows: Rows | None) -> Iterator[Recipe]:
        """Recipes that may give the columns from `begun` on."""
        left = width - begun
        if begun == 0:
            same = theirs[0][:1].clone()
            if len(same) and all(bool((t == same).all()) for t in theirs):
                yield Recipe("constant", width, Same(same, rows), fixed=True)
            if rows == ATOMS and (table := self._table(theirs)):
                yield Recipe("table of species", width, table, fixed=True)
        others = {s: r for s, r in self.kinds.items() if r.kind in ("bonds", "short edges")}
        if rows is None:
            every = without_rows(self.kinds)
        elif rows == ATOMS:
            names: Collection[str] = self.observations[0].structure.arrays
            every = of_atoms([name for name in names if all(name in o.structure.arrays for o in self.observations)])
        elif rows.kind == "angles":
            every = of_angles(rows, others)
        else:
            every = of_edges(rows, others)
        yield from (r for r in every if (r.width or width) <= left)

    def _table(self, theirs: Sequence[Tensor]) -> Table | None:
        """The row of each species, if atoms of a species have equal rows."""
        rows: dict[int, Tensor] = {}
        for o, values in zip(self.observations, theirs, strict=True):
            for z in o.structure.numbers.unique().tolist():
                of_species = values[o.structure.numbers == z]
                row = rows.setdefault(z, of_species[0].clone())
                if not bool((of_species == row).all()):
                    return None
        table = next(iter(rows.values())).new_zeros(max(rows) + 1, theirs[0].shape[1])
        for z, row in rows.items():
            table[z] = row
        return Table(table)

    def _gives(self, recipe: Recipe, theirs: Sequence[Tensor], begun: int) -> bool:
        """True if a recipe gives the columns of all observations."""
        for at, (part, values) in enumerate(zip(self.parts, theirs, strict=True)):
            wanted = values[:, begun : begun + (recipe.width or values.shape[1])]
            made = recipe.make(part)
            if made.shape != wanted.shape:
                return False
            if recipe.target is not None and not recipe.name.startswith("zero"):
                target = next((s for s, rows in self.kinds.items() if rows == recipe.target), "")
                ours = self.ours[at].get(target)
                if ours is None or wanted.is_floating_point() or not _are_numbers_of(wanted, len(ours)):
                    return False
                wanted = ours[wanted.long()]
                if recipe.name == "edge":  # a bond may stand for either of its edges
                    number = part.number_of_edge(Rows("bonds"))
                    made, wanted = number[made], number[wanted]
            if not _equal(made, wanted):
                return False
        return True


def _in_our_order(theirs: Tensor, ours: Tensor) -> Tensor:
    """The package's rows where ours are that they are."""
    return torch.empty_like(theirs).index_copy_(0, ours, theirs)


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


def _are_numbers_of(values: Tensor, rows: int) -> bool:
    return not values.numel() or (int(values.min()) >= 0 and int(values.max()) < rows)


def _is_whole_numbers(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def _equal(made: Tensor, wanted: Tensor) -> bool:
    """True if numbers are equal to what their type and those before it hold."""
    if not wanted.is_floating_point():
        return bool((made.to(wanted.dtype) == wanted).all())
    most = 2e-5 if wanted.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-9
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    return bool(((made.to(wanted.dtype) - wanted).abs() <= most * scale).all())
