"""Lengths of dimensions, as sums and products of sizes.

    edges + edges + atoms       rows of several lists, one after another: `Joined`
    atoms + 1                   rows, and one more that stands for none: `Joined` as well
    atoms * neighbours          the places of a grid, row by row: `Grid`

A number into the first two says by its range which list a row is of (`Joined.part`); one into the last is a row and a
place in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import sympy
import torch


def length(value: torch.Tensor, dim: int) -> sympy.Expr:
    """The length of a dimension as an expression, as it was traced."""
    return as_expression(value.shape[dim])


def as_expression(number: Any) -> sympy.Expr:
    """A number, or a symbolic one, as an expression."""
    return number.node.expr if isinstance(number, torch.SymInt) else sympy.sympify(number)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A dimension that holds rows of several lists, one after another."""

    pieces: tuple[sympy.Expr, ...]
    """The length of each list."""

    @classmethod
    def of(cls, *pieces: Any) -> Joined:
        """A dimension of lists of these lengths."""
        return cls(tuple(map(sympy.sympify, pieces)))

    @property
    def length(self) -> sympy.Expr:
        """The length of the dimension."""
        return sum(self.pieces, sympy.Integer(0))

    @property
    def ends(self) -> tuple[sympy.Expr, ...]:
        """The first row of each list, and the length."""
        return tuple(itertools.accumulate(self.pieces, initial=sympy.Integer(0)))

    def part(self, start: Any, size: Any) -> slice | None:
        """The lists that some rows are.

        Args:
            start: the number of the first row, from the front or from the end.
            size: how many rows.

        Returns:
            A slice of `pieces`; None if the rows are not whole lists.
        """
        ends = self.ends
        for first, begin in enumerate(ends):
            if 0 not in (sympy.expand(begin - start), sympy.expand(begin - start - self.length)):
                continue
            for last in range(first + 1, len(ends)):
                if sympy.expand(ends[last] - begin - size) == 0:
                    return slice(first, last)
        return None


@dataclasses.dataclass(frozen=True)
class Grid:
    """A dimension that holds the places of a grid, one row after another."""

    rows: sympy.Expr
    columns: sympy.Expr

    @property
    def length(self) -> sympy.Expr:
        """The length of the dimension."""
        return sympy.expand(self.rows * self.columns)

    @property
    def is_of_rows(self) -> bool:
        """True if its rows are as many as a graph has of something, and its columns do not depend on their number."""
        several = self.columns != 1 and not self.rows.free_symbols & self.columns.free_symbols
        return bool(self.rows.is_Symbol and several)


def one_beside(size: Any, start: Any, number: Any) -> tuple[str, str] | None:
    """A part of a dimension of rows and one more.

    Args:
        size: the length of the dimension.
        start: the first row of the part, from the front.
        number: how many rows the part has.

    Returns:
        (``"one"`` or ``"rows"``, which the part is; ``"first"`` or ``"last"``, where the one is). None if the part is
        neither.
    """
    rows = sympy.sympify(size) - 1
    for where, lists in (("last", (rows, 1)), ("first", (1, rows))):
        found = Joined.of(*lists).part(start, number)
        if found is not None and found.stop - found.start == 1:
            return ("one" if lists[found.start] == 1 else "rows"), where
    return None


def multiples(size: sympy.Expr) -> dict[sympy.Symbol, int] | None:
    """A length as a sum of symbols, each so many times; None if it is anything else."""
    found = size.as_coefficients_dict()
    if not found or not all(s.is_Symbol and n.is_Integer and n > 0 for s, n in found.items()):
        return None
    return {symbol: int(n) for symbol, n in found.items()}


def grid(size: sympy.Expr) -> Grid | None:
    """A length as a number of rows of a fixed number of places, two or more; None if it is anything else."""
    columns, rows = size.as_coeff_Mul()
    found = Grid(rows, columns)
    return found if columns.is_Integer and columns > 1 and found.is_of_rows else None
