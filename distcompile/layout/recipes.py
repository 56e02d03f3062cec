"""Recipes: how a tensor of a graph object comes out of a part of a structure.

A tensor has a row for each row of an index space (or none), in one of its dimensions; what is left of its shape is
flattened to columns. A recipe gives some columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .part import Part, Rows
from .structure import Frame

FRAMES: tuple[Frame, ...] = ("as given", "wrapped")
ATOMS, EDGES = Rows("atoms"), Rows("edges")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Gives some columns of a tensor."""

    name: str
    width: int | None
    """The number of columns; None for any."""
    make: Callable[[Part], Tensor]
    """Shape of the result: [rows, width], or [1, width] if there are no rows."""
    target: Rows | None = None
    """The kind of the rows that the numbers are numbers of."""
    fixed: bool = False
    """True if the result stays the same while atoms move and pairs do not come or go."""
    either_way: bool = False
    """True if numbers are of edges, and the mirrored ones would do as well."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A row of numbers for each species."""

    rows: Tensor
    """By atomic number; zeros for those that were not met, which are learned before.  # Shape: [numbers, columns]"""

    def __call__(self, part: Part) -> Tensor:
        return self.rows[part.structure.numbers[part.pairs.atoms]]


@dataclasses.dataclass(frozen=True)
class Same:
    """The same numbers in each row."""

    row: Tensor
    rows: Rows | None

    def __call__(self, part: Part) -> Tensor:
        return self.row.expand(1 if self.rows is None else part.count(self.rows), -1)


def without_rows(counts: Mapping[str, Rows]) -> Iterator[Recipe]:
    """Recipes of tensors that have no rows: of the cell, of counts."""

    def of_cell(name: str, width: int, make: Callable[[Tensor], Tensor]) -> Recipe:
        return Recipe(name, width, lambda part: make(part.structure.cell).reshape(1, -1))

    yield of_cell("cell", 9, lambda c: c)
    yield of_cell("cell, transposed", 9, lambda c: c.T)
    yield of_cell("inverse of the cell", 9, torch.linalg.pinv)
    yield of_cell("inverse of the cell, transposed", 9, lambda c: torch.linalg.pinv(c).T)
    yield of_cell("reciprocal cell", 9, lambda c: 2 * torch.pi * torch.linalg.pinv(c))
    yield of_cell("reciprocal cell, transposed", 9, lambda c: 2 * torch.pi * torch.linalg.pinv(c).T)
    yield of_cell("lengths of the cell's vectors", 3, lambda c: c.norm(dim=1))
    for axis in range(3):
        yield Recipe(f"vector {axis + 1} of the cell", 3, functools.partial(_vector_of_cell, axis))
    yield of_cell("volume", 1, lambda c: torch.linalg.det(c).abs())
    for name, rows in counts.items():
        yield Recipe(f"number of {name}", 1, functools.partial(_count, rows))
        yield Recipe(f"zero and the number of {name}", 2, functools.partial(_span, rows))


def _vector_of_cell(axis: int, part: Part) -> Tensor:
    return part.structure.cell[axis][None]


def _count(rows: Rows, part: Part) -> Tensor:
    return torch.tensor([[part.count(rows)]])


def _span(rows: Rows, part: Part) -> Tensor:
    return torch.tensor([[0, part.count(rows)]])


def of_atoms(arrays: Sequence[str]) -> Iterator[Recipe]:
    """Recipes of tensors with a row for each atom, beside tables of species."""
    for frame in FRAMES:
        yield Recipe(f"positions, {frame}", 3, functools.partial(Part.positions, frame=frame))
        yield Recipe(f"fractional coordinates, {frame}", 3, functools.partial(Part.fractional, frame=frame))
    yield Recipe("number of the atom", 1, lambda part: torch.arange(len(part.pairs.atoms))[:, None], ATOMS, True)
    for name in arrays:
        yield Recipe(f"array {name!r}", None, functools.partial(_array, name))


def _array(name: str, part: Part) -> Tensor:
    return part.structure.arrays[name][part.pairs.atoms].reshape(len(part.pairs.atoms), -1)


def of_edges(rows: Rows, others: Mapping[str, Rows]) -> Iterator[Recipe]:
    """Recipes of tensors with a row for each edge, bond, or short edge."""
    whole = rows.kind == "edges"

    def recipe(name: str, make: Callable[[Part], Tensor], target: Rows | None = None, fixed: bool = False) -> Recipe:
        def columns(part: Part) -> Tensor:
            values = make(part)
            chosen = values if whole else values.index_select(0, part.edge_of(rows))
            return chosen[:, None] if chosen.dim() == 1 else chosen

        return Recipe(name, 3 if name.startswith(("images", "shifts", "vectors")) else 1, columns, target, fixed)

    yield recipe("first atom", lambda part: part.pairs.first, ATOMS, True)
    yield recipe("second atom", lambda part: part.pairs.second, ATOMS, True)
    for sign, word in ((1.0, ""), (-1.0, ", negative")):
        for frame in FRAMES:
            images = functools.partial(_images, sign, frame)
            yield recipe(f"images{word}, {frame}", images, None, frame == "as given")
            yield recipe(f"shifts{word}, {frame}", functools.partial(_shifts, images))
        yield recipe(f"vectors{word}", functools.partial(_vectors, sign))
    yield recipe("lengths", lambda part: part.lengths)
    yield recipe("mirrored edge", lambda part: part.pairs.mirror, EDGES, True)
    if not whole:
        either_way = rows.kind == "bonds"
        yield Recipe("edge", 1, lambda part: part.edge_of(rows)[:, None], EDGES, True, either_way)
    for name, other in others.items():
        number = functools.partial(Part.number_of_edge, rows=other)
        yield recipe(f"number among {name}", number, other, not other.cutoff)


def _images(sign: float, frame: Frame, part: Part) -> Tensor:
    return sign * part.images(frame)


def _shifts(images: Callable[[Part], Tensor], part: Part) -> Tensor:
    return images(part) @ part.structure.cell


def _vectors(sign: float, part: Part) -> Tensor:
    return sign * part.vectors


def of_angles(rows: Rows, others: Mapping[str, Rows]) -> Iterator[Recipe]:
    """Recipes of tensors with a row for each angle."""

    def recipe(name: str, which: int, target: Rows, make: Callable[[Part, Tensor], Tensor]) -> Recipe:
        def column(part: Part) -> Tensor:
            return make(part, part.angle_edges(rows)[:, which])[:, None]

        return Recipe(name, 1, column, target, True)

    yield recipe("atom", 0, ATOMS, lambda part, edge: part.pairs.first[edge])
    for which, word in ((0, "first"), (1, "second")):
        yield recipe(f"{word} edge", which, EDGES, lambda part, edge: edge)
        yield recipe(f"end of the {word} edge", which, ATOMS, lambda part, edge: part.pairs.second[edge])
        for name, other in others.items():
            number = functools.partial(_number_of, other)
            yield recipe(f"number of the {word} edge among {name}", which, other, number)


def _number_of(other: Rows, part: Part, edge: Tensor) -> Tensor:
    return part.number_of_edge(other)[edge]
