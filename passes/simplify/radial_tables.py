"""Tables of functions of one number: piecewise polynomials through values, slopes and curvatures, and their error.

    f(x) = c0 + t (c1 + t (c2 + t (c3 + t (c4 + t c5))))        x = low + (i + t) step, 0 <= t < 1

At the nodes, where two polynomials meet, their values, first and second derivatives are those of the functions. So
values, forces and second derivatives are continuous, and the error falls with the sixth power of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from ...runtime.operators.radial import COEFFICIENTS, radial_lookup

Function = Callable[[Tensor], Tensor]
"""From numbers in float64, shape [n], to functions of each, shape [n, functions]."""

FEWEST, MOST = 16, 2**14
"""Intervals of a table."""
BETWEEN = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Places within each interval at which the error is measured."""
BELOW = 0.5
"""Where a table begins, in units of the smallest number of the example."""
ABOVE = 1.05
"""Where it ends if the functions do not end themselves, in units of the largest number."""
FAR = 4.0
"""How far is looked for an end of the functions, in the same units."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The numbers that a table is made for."""

    low: float
    high: float
    ends: bool
    """True if functions are constant from `high` on."""
    kink: float | None = None
    """Where functions are put together of two, with a step in some derivative."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Polynomials, and how well they stand for the functions."""

    coefficients: Tensor
    """Shape: [intervals, COEFFICIENTS, functions]. dtype: float64."""
    low: float
    high: float
    error: float


def derivatives(function: Function, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, slopes and curvatures."""
    (values, slopes), (_, curvatures) = _with_slopes(functools.partial(_with_slopes, function), x)
    return values, slopes, curvatures


def slopes_of(function: Function, x: Tensor) -> Tensor:
    """The first derivatives."""
    slopes: Tensor = _with_slopes(function, x)[1]
    return slopes


def _with_slopes(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What a function returns, and its derivative."""
    return jvp(function, (x,), (torch.ones_like(x),))


def span(function: Function, seen: Tensor, conditions: Function | None = None) -> Span:
    """The range of a table: from below the smallest number that was seen, to the end of the functions if they have one.

    Functions that a cutoff ends are constant beyond it. To the left of the end they vary, so the table stops there, and
    no polynomial has to bend round it.

    Args:
        function: to tabulate.
        seen: numbers of the example.
        conditions: truth values that functions are put together by. Shape: [n, conditions].
    """
    low, largest = BELOW * float(seen.min()), float(seen.max())
    grid = torch.linspace(low, FAR * largest, 1024, dtype=torch.float64)
    end = _end(function, grid)
    ends = end is not None and end <= FAR / 2 * largest and _is_even_at(function, end)
    high = end if ends and end is not None else ABOVE * largest
    inside = [k for k in _changes(conditions, grid) if low < k < high * (1 - 1e-9)] if conditions is not None else []
    return Span(low, high, ends, inside[-1] if inside else None)


def _end(function: Function, grid: Tensor) -> float | None:
    """The last number at which any function varies; None if all do not vary, or one is not finite later on."""
    varies = (slopes_of(function, grid) != 0).any(1)
    last = int(varies.nonzero().max()) if bool(varies.any()) else len(grid)
    if last + 1 >= len(grid) or not bool(function(grid[last:]).isfinite().all()):
        return None
    return _between(lambda x: (slopes_of(function, x) != 0).any(1), grid[last], grid[last + 1])[0]


def _is_even_at(function: Function, end: float) -> bool:
    """True if functions do not jump where they end."""
    left, right = function(torch.tensor([end, end * (1 + 1e-15)], dtype=torch.float64))
    return float((left - right).abs().max()) <= 1e-12 * max(1.0, float(left.abs().max()))


def _changes(conditions: Function, grid: Tensor) -> list[float]:
    """Where truth values change, in order."""
    truth = conditions(grid)
    found = set()
    for i in (truth[1:] != truth[:-1]).any(1).nonzero().flatten().tolist():
        for k in (truth[i + 1] != truth[i]).nonzero().flatten().tolist():
            first = bool(truth[i, k])
            at = _between(lambda x, k=k, first=first: conditions(x)[:, k] == first, grid[i], grid[i + 1])  # type: ignore
            found.add(round(at[0], 12))
    return sorted(found)


def _between(holds: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> tuple[float, float]:
    """Two numbers next to each other, of which a condition holds for the first alone."""
    inside, outside = float(left), float(right)
    while inside < (middle := (inside + outside) / 2) < outside:
        if bool(holds(torch.tensor([middle], dtype=torch.float64))):
            inside = middle
        else:
            outside = middle
    return inside, outside


def tabulated(function: Function, where: Span, error: float, bytes_each: int, budget: int) -> Table | None:
    """The shortest table whose error is tested to be below `error`; None if it is larger than `budget` bytes.

    Args:
        function: to tabulate.
        where: the range.
        error: allowed for values, relative to the largest value, and for slopes, relative to the largest slope.
        bytes_each: of a number of the table.
        budget: bytes of the table.
    """
    intervals = FEWEST
    while intervals <= MOST:
        low, count = _grid(where, intervals)
        intervals *= 2
        if low < 0.8 * where.low:
            continue
        made = _polynomials(function, low, where.high, count)
        if made.numel() * bytes_each > budget:
            return None
        found = measured(function, made, low, where.high)
        if found <= error:
            return Table(made, low, where.high, found)
    return None


def _grid(where: Span, intervals: int) -> tuple[float, int]:
    """The beginning of a table and the number of its intervals, so that two of them meet at a kink."""
    if where.kink is None:
        return where.low, intervals
    right = math.ceil(intervals * (where.high - where.kink) / (where.high - where.low))
    step = (where.high - where.kink) / right
    left = math.ceil((where.kink - where.low) / step)
    return where.kink - left * step, left + right


def _polynomials(function: Function, low: float, high: float, intervals: int) -> Tensor:
    step = (high - low) / intervals
    nodes = low + step * torch.arange(intervals + 1, dtype=torch.float64)
    near = 1e-14 * high  # a node at a kink, or at the end, belongs to the functions on either side
    left, right = (derivatives(function, x) for x in (nodes[:-1] + near, nodes[1:] - near))
    (c0, end), (c1, slope), (c2, bend) = (
        (a * scale, b * scale) for a, b, scale in zip(left, right, (1.0, step, step**2 / 2), strict=True)
    )
    rise, slope, bend = end - c0 - c1 - c2, slope - c1 - 2 * c2, bend - c2
    c3 = 10 * rise - 4 * slope + bend
    c4 = -15 * rise + 7 * slope - 2 * bend
    c5 = 6 * rise - 3 * slope + bend
    made = torch.stack([c0, c1, c2, c3, c4, c5], 1)
    assert made.shape[1] == COEFFICIENTS
    return made


def measured(function: Function, coefficients: Tensor, low: float, high: float) -> float:
    """The largest error between nodes; NaN is an error, too."""
    intervals = len(coefficients)
    step = (high - low) / intervals
    places = torch.arange(intervals, dtype=torch.float64)[:, None] + torch.tensor(BETWEEN, dtype=torch.float64)
    x = low + step * places.reshape(-1)
    values, slopes = _with_slopes(function, x)
    worst = 0.0
    for order, exact in ((0, values), (1, slopes)):
        found = radial_lookup(x, coefficients, low, high, order)
        scale = float(exact.abs().max()) or 1.0
        off = float((found - exact).abs().max()) / scale
        worst = off if off > worst or off != off else worst
    return worst
