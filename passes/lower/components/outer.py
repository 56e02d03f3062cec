"""Sums over rows of outer products: gradients of weights.

    dW[i, j] = sum over rows of x[i] * g[j]     =>     a product of matrices for each few rows, [i, lanes] x [lanes, j]

Element by element each row would have a number for every weight. What is summed is instead followed back through
scales, signs and additions to products of two factors. Where these form a full grid (every factor on the left with
every one on the right), only the factors are computed for a row, and the grid is added up as a product of matrices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from .elements import Elements, Pointwise, Sum, Table

SMALLEST = 16
"""Products of a grid below which it is not worth a call."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """A full grid of products: ``sum over terms of left[i, term] * right[term, j]``, summed over rows."""

    left: Elements
    """Shape: [m, terms]."""
    right: Elements
    """Shape: [terms, n]."""
    places: np.ndarray
    """The entry of the result to which each product is added. Shape: [m, n]."""
    factor: float
    """By what each is multiplied before."""


@dataclasses.dataclass(frozen=True)
class Summed:
    """What is added up over rows for one result."""

    outers: tuple[Outer, ...]
    rest: Elements
    """Elements that are in no grid."""
    places: np.ndarray
    """The entry of the result to which each of the rest is added."""


def summed(table: Table, values: Elements) -> Summed:
    """What to add up for a result that is a sum over rows of `values`, flattened."""
    outers: list[Outer] = []
    alone = [np.arange(len(values) if len(values) < SMALLEST else 0)]
    for contribution in _contributions(table, values if len(values) >= SMALLEST else values[:0]):
        found, left_over = _grids(table, contribution)
        outers += found
        alone.append(left_over)
    # What is in no grid stays as it is, with all that it is added to, and so does the rest of a grid that it is in.
    stays = np.zeros(len(values), bool)
    stays[np.concatenate(alone)] = True
    while spoiled := [outer for outer in outers if stays[outer.places].any()]:
        outers = [outer for outer in outers if not stays[outer.places].any()]
        for outer in spoiled:
            stays[outer.places] = True
    places = np.flatnonzero(stays)
    return Summed(tuple(outers), values[places], places)


@dataclasses.dataclass(frozen=True)
class _Contribution:
    """Some elements, times factors, that are added to places of a result."""

    elements: Elements
    factors: np.ndarray
    places: np.ndarray

    def part(self, chosen: np.ndarray) -> _Contribution:
        return _Contribution(self.elements[chosen], self.factors[chosen], self.places[chosen])


def _contributions(table: Table, values: Elements) -> Iterator[_Contribution]:
    """What values are sums of, as products: followed back through scales, signs and additions."""
    pending = [_Contribution(values, np.ones(len(values)), np.arange(len(values)))]
    while pending:
        this = pending.pop()
        this = this.part(table.value(this.elements) != 0)  # NaN, which is computed, is not zero
        owner = table.owner(this.elements)
        for i in np.unique(owner).tolist():
            part = this.part(owner == i)
            what = table.definitions[i].what if i >= 0 else None
            if not isinstance(what, Pointwise) or what.function not in ("mul", "add", "sub", "neg"):
                yield part
                continue
            at = np.searchsorted(table.definitions[i].elements, part.elements)
            operands = [o[at] for o in what.operands]
            if what.function == "mul":
                numbers = [table.value(o) for o in operands]
                known = [bool(~np.isnan(n).any()) for n in numbers]
                if not any(known):
                    yield part
                    continue
                k = known.index(True)
                pending.append(_Contribution(operands[1 - k], part.factors * numbers[k], part.places))
                continue
            signs = {"add": (1.0, 1.0), "sub": (1.0, -1.0), "neg": (-1.0,)}[what.function]
            pending += [
                _Contribution(o, sign * part.factors, part.places) for o, sign in zip(operands, signs, strict=True)
            ]


def _grids(table: Table, of: _Contribution) -> tuple[list[Outer], np.ndarray]:
    """The grids of products that a contribution is made of, and the places of what is in none."""
    i = int(table.owner(of.elements[:1])[0])
    what = table.definitions[i].what if i >= 0 else None
    at = np.searchsorted(table.definitions[i].elements, of.elements)
    if isinstance(what, Sum) and len(what.factors) == 2:
        left, right = (f[at] for f in what.factors)
    elif isinstance(what, Pointwise) and what.function == "mul":
        left, right = (o[at][:, None] for o in what.operands)
    else:
        return [], of.places
    from scipy.sparse import coo_array  # slow to import, and needed for gradients of weights only
    from scipy.sparse.csgraph import connected_components

    rows, row = np.unique(left, axis=0, return_inverse=True)
    columns, column = np.unique(right, axis=0, return_inverse=True)
    row, column = row.reshape(-1), column.reshape(-1)
    edges = coo_array((np.ones(len(row)), (row, len(rows) + column)), (len(rows) + len(columns),) * 2)
    _, component = connected_components(edges, directed=False)
    found: list[Outer] = []
    left_over = []
    for c in np.unique(component).tolist():
        mine = np.flatnonzero(component[row] == c)
        r, c_ = np.unique(row[mine]), np.unique(column[mine])
        grid = np.full((len(r), len(c_)), -1)
        grid[np.searchsorted(r, row[mine]), np.searchsorted(c_, column[mine])] = mine
        full = len(mine) == grid.size and bool((grid >= 0).all())
        if not full or min(grid.shape) < 2 or grid.size < SMALLEST or np.ptp(of.factors[mine]):
            left_over.append(of.places[mine])
            continue
        one, two = rows[r], columns[c_]
        if len(r) > len(c_):  # the longer side is in the vectors
            one, two, grid = two, one, grid.T
        found.append(Outer(one, np.ascontiguousarray(two.T), of.places[grid], float(of.factors[mine[0]])))
    return found, np.concatenate([np.zeros(0, np.int64), *left_over])
