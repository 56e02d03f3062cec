"""Gradients of weights are products of matrices over rows, not a number for every weight of every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distcompile.passes.lower import lower
from distcompile.passes.lower.components.elements import Pointwise, Rows, Table
from distcompile.passes.lower.components.outer import Summed, summed
from distcompile.passes.lower.components.values import Builder
from distcompile.runtime.execution.kernels import Kernel
from distcompile.runtime.execution.tiles import Reduce

from . import bodies
from .bodies import Inputs, regions
from .test_kernels import check, tensors

SUM = Reduce("sum")


class Row:
    """Elements of a row, to make sums of."""

    def __init__(self) -> None:
        self.table = Table()
        self.builder = Builder(self.table)
        self.x, self.g = (self.table.define(Rows(i), torch.float64, (n,)) for i, n in enumerate((6, 5)))

    def multiplied(self, one: np.ndarray, other: np.ndarray, function: str = "mul") -> np.ndarray:
        one, other = (np.ascontiguousarray(x).reshape(-1) for x in np.broadcast_arrays(one, other))
        return self.table.define(Pointwise(function, (one, other), torch.float64), torch.float64, (len(one),))

    def grid(self) -> np.ndarray:
        return self.multiplied(self.x[:, None], self.g[None])

    def summed(self, values: np.ndarray) -> Summed:
        return summed(self.table, values.reshape(-1))


def covered(found: Summed, width: int) -> None:
    """Each entry of the result is added to."""
    places = np.concatenate([found.places, *(o.places.reshape(-1) for o in found.outers)])
    assert sorted(set(places.tolist())) == list(range(width))


def test_a_grid() -> None:
    """The longer side is on the right; entries of the result are where they were."""
    row = Row()
    found = row.summed(row.grid())
    (outer,) = found.outers
    assert outer.left[:, 0].tolist() == row.g.tolist() and outer.right[0].tolist() == row.x.tolist()
    assert outer.places.tolist() == np.arange(30).reshape(6, 5).T.tolist() and outer.factor == 1.0
    assert not len(found.rest)


def test_scaled_moved_and_added_up() -> None:
    """What a normalisation, a transposition and a second use of the same weights make of grids."""
    row = Row()
    half = np.full(30, row.builder.literal(-0.5))
    one = row.multiplied(row.grid(), half).reshape(6, 5).T.reshape(-1)
    two = row.multiplied(row.g[:, None], row.g[None, [0] * 6])  # of another shape of factors: 5 x 1
    found = row.summed(row.multiplied(one, row.multiplied(row.x[None], row.g[:, None]), "sub"))
    assert sorted(o.factor for o in found.outers) == [-1.0, -0.5] and not len(found.rest)
    covered(found, 30)
    assert not row.summed(two).outers  # rows of one column are no grid
    assert row.summed(two).rest.tolist() == two.tolist()


def test_what_is_no_full_grid() -> None:
    """A grid with a hole, and one with something else added to some of its entries, stay as they are."""
    row = Row()
    grid = row.grid()
    assert not row.summed(grid[:-1]).outers and row.summed(grid[:-1]).rest.tolist() == grid[:-1].tolist()
    other = grid.copy()
    other[3] = row.multiplied(row.x[:1], row.x[1:2])[0]
    found = row.summed(other)
    assert not found.outers and found.rest.tolist() == other.tolist()


def test_grids_that_overlap_stay_together() -> None:
    """A grid that something is added to, which is in no grid, stays as it is; so does all that is added to the rest."""
    row = Row()
    alone = row.multiplied(row.x, np.roll(row.x, 1))  # 6 products that are no grid
    part = row.multiplied(row.x[:4, None], row.x[None])  # 4 x 6
    both = row.multiplied(row.grid(), np.concatenate([alone, part]), "add")
    found = row.summed(both)
    assert not found.outers and found.rest.tolist() == both.tolist()
    both = row.multiplied(row.grid(), np.concatenate([np.full(6, row.builder.zero), part]), "add")
    found = row.summed(both)
    assert len(found.outers) == 2 and not len(found.rest)
    covered(found, 30)


def test_blocks_are_grids_of_their_own() -> None:
    """As of weights that are a list of several matrices."""
    row = Row()
    blocks = [row.multiplied(row.x[3 * i : 3 * i + 3, None], row.g[None]) for i in range(2)]
    found = row.summed(np.concatenate([blocks[0], np.full(4, row.builder.zero), blocks[1]]))
    assert not found.outers  # too small to be worth it
    wide = [row.multiplied(row.x[3 * i : 3 * i + 3, None], np.concatenate([row.g, row.x])[None]) for i in range(2)]
    found = row.summed(np.concatenate([wide[0], np.full(4, row.builder.zero), wide[1]]))
    assert len(found.outers) == 2 and not len(found.rest)
    places = sorted(np.concatenate([o.places.reshape(-1) for o in found.outers]).tolist())
    assert places == [*range(33), *range(37, 70)]


def weights(t: Any) -> list[Tensor]:
    """Gradients as of linear layers: wide, of a one-hot, with several entries a row, scaled, and of a bias."""
    several = torch.einsum("nki,nkj->ij", t.y, t.y.sin())
    return [
        t.x.T @ (t.x.tanh() * t.x) / 3,
        t.one_hot.T @ t.x.exp(),
        several - t.y[:, 0].T @ t.y[:, 1] * 0.25,
        torch.cat([(t.x[:, :7].T @ t.x[:, 3:]).reshape(-1), (t.x[:, 1:].T @ t.y[:, 2]).reshape(-1)]),
        t.x.sum(0),
    ]


def given(rows: int, dtype: torch.dtype) -> Inputs:
    chance = torch.Generator().manual_seed(rows)
    return {
        "x": bodies.Rows(torch.randn(rows, 20, generator=chance, dtype=torch.float64).to(dtype)),
        "y": bodies.Rows(torch.randn(rows, 3, 37, generator=chance, dtype=torch.float64).to(dtype)),
        "one_hot": bodies.Rows(torch.eye(20, dtype=dtype)[torch.randint(0, 3, (rows,), generator=chance)]),
    }


@pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, check), (torch.float32, None)], ids=["double", "single"])
def test_sums_are_those_of_operators(dtype: torch.dtype, exact: Callable[..., None] | None) -> None:
    """Of fewer rows than lanes, of many, of some left over, in one stretch and in several."""
    plain, region = regions(weights, given(11, dtype), (SUM,) * 5)
    assert isinstance(region.compiled, Kernel)
    for rows in (1, 7, 16, 37, 200, 3001):
        tensors_ = tensors(given(rows, dtype))
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found, expected = region(rows, *tensors_), plain(rows, *tensors_)
            torch.set_num_threads(1)
            if exact is not None:
                exact(found, expected)
                continue
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()))


@pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")
def test_many_rows_keep_their_digits() -> None:
    """Single precision adds up few rows only."""
    _, region = regions(lambda t: [t.x.T @ (t.x + 1)], {"x": bodies.Rows(torch.full((11, 20), 0.1))}, (SUM,))
    (found,) = region(2**20, torch.full((2**20, 20), 0.1))
    torch.testing.assert_close(found, torch.full((20, 20), 0.1 * 1.1 * 2**20), rtol=5e-6, atol=0)
