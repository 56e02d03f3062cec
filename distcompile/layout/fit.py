"""Fit recipes to what a package made of some structures.

Rows of a package come in an order of its own, so they are first found among ours (`rows`). Then each tensor is compared
with what each recipe makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .layout import Layout, LeafRecipe
from .observed import Described, NoRecipeError, Observation, are_numbers_of, columns
from .part import Rows
from .recipes import ATOMS, Recipe, Same, Table, of_angles, of_atoms, of_edges, without_rows
from .rows import Found, Interval, find_rows


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
    found = find_rows(leaves, observations, cutoffs or {})
    fitter = _Fitter(leaves, observations, found)
    recipes = tuple(fitter.leaf(at, leaf) for at, leaf in enumerate(leaves))
    return Layout(found.cutoff, found.kinds, recipes, tuple(fitter.ignored)), found.intervals


class _Fitter:
    def __init__(self, leaves: Sequence[Described], observations: Sequence[Observation], found: Found) -> None:
        self._leaves, self._observations, self._found = leaves, observations, found
        self.ignored: list[tuple[int, int, int]] = []
        """Numbers that no recipe gives, see `Layout.ignored`."""

    def leaf(self, at: int, leaf: Described) -> LeafRecipe:
        """The recipe of a leaf."""
        example = self._observations[0].tensors[at]
        dim = leaf.spaces.index(leaf.space) if leaf.space else -1
        rest = [n for d, n in enumerate(example.shape) if d != dim]
        rows = self._found.kinds.get(leaf.space) if leaf.space else None
        if not leaf.needed or not any(o.tensors[at].numel() for o in self._observations):
            return LeafRecipe(leaf.path, rows or ATOMS, dim, tuple(rest), example.dtype, example.device, (), example)
        theirs = []
        for ours, observed in zip(self._found.ours, self._observations, strict=True):
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
        others = {s: r for s, r in self._found.kinds.items() if r.kind in ("bonds", "short edges")}
        if rows is None:
            every = without_rows(self._found.kinds)
        elif rows == ATOMS:
            names: Collection[str] = self._observations[0].structure.arrays
            every = of_atoms([name for name in names if all(name in o.structure.arrays for o in self._observations)])
        elif rows.kind == "angles":
            every = of_angles(rows, others)
        else:
            every = of_edges(rows, others)
        yield from (r for r in every if (r.width or width) <= left)

    def _table(self, theirs: Sequence[Tensor]) -> Table | None:
        """The row of each species, if atoms of a species have equal rows."""
        rows: dict[int, Tensor] = {}
        for o, values in zip(self._observations, theirs, strict=True):
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
        for at, (part, values) in enumerate(zip(self._found.parts, theirs, strict=True)):
            wanted = values[:, begun : begun + (recipe.width or values.shape[1])]
            made = recipe.make(part)
            if made.shape != wanted.shape:
                return False
            if recipe.target is not None:
                target = next((s for s, rows in self._found.kinds.items() if rows == recipe.target), "")
                ours = self._found.ours[at].get(target)
                if ours is None or wanted.is_floating_point() or not are_numbers_of(wanted, len(ours)):
                    return False
                wanted = ours[wanted.long()]
                if recipe.either_way:  # a bond may stand for either of its edges
                    number = part.number_of_edge(Rows("bonds"))
                    made, wanted = number[made], number[wanted]
            if not _equal(made, wanted):
                return False
        return True


def _in_our_order(theirs: Tensor, ours: Tensor) -> Tensor:
    """The package's rows where ours are that they are."""
    return torch.empty_like(theirs).index_copy_(0, ours, theirs)


def _equal(made: Tensor, wanted: Tensor) -> bool:
    """True if numbers are equal to what their type and those before it hold."""
    if not wanted.is_floating_point():
        return bool((made.to(wanted.dtype) == wanted).all())
    most = 2e-5 if wanted.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-9
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    return bool(((made.to(wanted.dtype) - wanted).abs() <= most * scale).all())
