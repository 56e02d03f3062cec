"""The language of component code: every number that belongs to a row is an element with a name.

    x = rows(input 0)        [3]       elements 10 11 12
    n = x / 2                [3]       elements 13 14 15       13 = 10 * 0.5, ...
    y = cat(n[1:], x[:1])    [3]       elements 14 15 10       nothing to compute: names stand in another order

A body is followed as if there were one row. Its tensors are arrays of elements, so whatever only moves numbers about
(views, slices, permutations, joins) costs nothing. What computes numbers is a `Definition`: a run of new elements.
Elements that are known numbers (of constants, or zeros that pad) are never computed, multiplied by or added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Elements = np.ndarray
"""Names of elements. dtype: int64."""


class Unsupported(Exception):  # noqa: N818  a finding, not a failure
    """A body holds what component code cannot say; it is left to another code generator."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Each row's own entries of an input."""

    input: int


@dataclasses.dataclass(frozen=True)
class Whole:
    """The entries of an input that is the same for all rows."""

    input: int


@dataclasses.dataclass(frozen=True)
class Gather:
    """The row of an input at which an element points."""

    input: int
    index: Elements
    """Shape: [1]."""
    split: int = 1
    """Rows for each entry of the input's dimension."""


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """A function of one number, or a few, for each element."""

    function: str
    operands: tuple[Elements, ...]
    """Each of shape [n]."""
    within: torch.dtype
    """The dtype of the operands; a condition is of truth values."""


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of products for each element, in its simplest form a sum."""

    factors: tuple[Elements, ...]
    """Each of shape [n, terms]."""


@dataclasses.dataclass(frozen=True)
class Product:
    """The product with a matrix that is the same for all rows."""

    left: Elements
    """Shape: [m, terms]."""
    right: Elements
    """Elements of `Whole`. Shape: [terms, width]."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Functions of a number, or their derivatives, from a table of polynomials; see `radial_lookup`."""

    input: int
    """The table."""
    x: Elements
    """The number. Shape: [1]."""
    intervals: int
    low: float
    high: float
    order: int


What = Rows | Whole | Gather | Pointwise | Sum | Product | Lookup


@dataclasses.dataclass(frozen=True)
class Definition:
    """A run of new elements."""

    what: What
    elements: Elements
    """Shape: [n], ascending."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """The shape of the tensor for which they were made."""
    places: Elements
    """The position of each element in that tensor. Shape: [n]."""

    @property
    def operands(self) -> tuple[Elements, ...]:
        """The elements that it is computed from, those of whole inputs too."""
        match self.what:
            case Gather(_, index, _):
                return (index,)
            case Lookup(_, x):
                return (x,)
            case Pointwise(_, operands):
                return operands
            case Sum(factors):
                return factors
            case Product(left, right):
                return (left, right)
        return ()


class Table:
    """All elements of a body, and what is known of each."""

    def __init__(self) -> None:
        self.definitions: list[Definition] = []
        self.numbers: dict[tuple[float, bool], int] = {}
        """The elements that are literals."""
        self._value = np.empty(0)
        self._owner = np.empty(0, np.int64)
        self.count = 0

    def _more(self, n: int, owner: int) -> Elements:
        while self.count + n > len(self._value):
            size = max(1024, 2 * len(self._value), self.count + n)
            self._value = np.concatenate([self._value, np.full(size - len(self._value), np.nan)])
            self._owner = np.concatenate([self._owner, np.full(size - len(self._owner), -1)])
        new = np.arange(self.count, self.count + n)
        self._owner[new] = owner
        self.count += n
        return new

    def define(
        self, what: What, dtype: torch.dtype, shape: tuple[int, ...], places: Elements | None = None
    ) -> Elements:
        """New elements for some places of a tensor of this shape; for all if none are given. Shape: [n]."""
        if places is None:
            places = np.arange(int(np.prod(shape)))
        new = self._more(len(places), len(self.definitions))
        self.definitions.append(Definition(what, new, dtype, shape, places))
        return new

    def know(self, elements: Elements, values: np.ndarray) -> None:
        """The elements are these numbers."""
        self._value[elements] = values

    def literal(self, value: Any) -> int:
        """The element that is this number."""
        key = (float(value), np.signbit(value).item())
        if key not in self.numbers:
            (new,) = self._more(1, -1)
            self._value[new] = value
            self.numbers[key] = int(new)
        return self.numbers[key]

    def value(self, elements: Elements) -> np.ndarray:
        """The numbers that elements are, NaN for those that are computed."""
        return self._value[elements]  # type: ignore[no-any-return]

    def owners(self, elements: Elements) -> list[int]:
        """The positions of definitions of elements, each once."""
        found = self._owner[elements]
        if found.size and (found == found.flat[0]).all():  # most often
            return [int(found.flat[0])]
        return np.unique(found).tolist()  # type: ignore[no-any-return]

    def owner(self, elements: Elements) -> np.ndarray:
        """The positions of the definitions of elements; -1 for literals."""
        return self._owner[elements]  # type: ignore[no-any-return]


def positions(table: Table, definitions: Sequence[Definition]) -> np.ndarray:
    """For each element, the position of its definition among these; -1 for others."""
    found = np.full(table.count, -1)
    for i, definition in enumerate(definitions):
        found[definition.elements] = i
    return found


def needed(table: Table, definitions: Sequence[Definition], outputs: Sequence[Elements]) -> list[Definition]:
    """The definitions, each with the elements that results depend on."""
    wanted = np.zeros(table.count, bool)
    for output in outputs:
        wanted[output] = True
    found = []
    for definition in reversed(definitions):
        keep = wanted[definition.elements]
        if not keep.any():
            continue
        part = definition if keep.all() or isinstance(definition.what, Product | Lookup) else _part(definition, keep)
        for operand in part.operands:
            wanted[operand] = True
        found.append(part)
    return found[::-1]


def _part(definition: Definition, keep: np.ndarray) -> Definition:
    what = definition.what
    if isinstance(what, Pointwise):
        what = dataclasses.replace(what, operands=tuple(o[keep] for o in what.operands))
    elif isinstance(what, Sum):
        what = Sum(tuple(o[keep] for o in what.factors))
    return dataclasses.replace(
        definition, what=what, elements=definition.elements[keep], places=definition.places[keep]
    )
