"""Stretches of a program that were replaced by tables of polynomials, and what holds for them."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class RadialTable:
    """Some functions of one number a row."""

    functions: int
    intervals: int
    error: float
    """The largest error between nodes, of values relative to the largest value, of slopes relative to the largest."""
    nbytes: int
    line: str
    """The model's line that computes them."""


@dataclasses.dataclass(frozen=True)
class Tabulated:
    """Functions of one number a row that are looked up, where it was tested that they may be."""

    low: float
    high: float
    ends: bool
    """True if the functions are constant above `high`, so that any larger number may be looked up, too."""
    line: str
    """The model's line that computes the number."""
    tables: tuple[RadialTable, ...]
    weights: tuple[Tensor, ...]
    """The weights that the tables were made of."""

    def complaint(self, outside: Tensor) -> str:
        """The reason to refuse a graph; empty if there is none.

        Args:
            outside: how many numbers are outside of the range, and their sum. Shape: [2].
        """
        count, total = outside.tolist()
        if count == 0:
            return ""
        numbers = f"{count:.0f} numbers are, {total / count:.6g} on average" if count > 1 else f"{total:.6g} is"
        upper = "" if self.ends else f" to {self.high:.6g}"
        return (
            f"radial_error was asked for, and tables of radial functions were made for numbers from {self.low:.6g}"
            f"{upper} ({self.line}). In this graph {numbers} outside of that. Compile with an example that has such "
            "distances, or without radial_error."
        )
