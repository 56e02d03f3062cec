"""Sizes that one pointer runs over are one space, and so are those that the model compares."""

from __future__ import annotations

import pytest
import torch
from printed import header, holds, programs
from torch import Tensor

from distcompile.errors import NoIndexSpaceError


def messages(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """q reads y and adds to x, which are of one space therefore; p and q are of one by the product."""
    return torch.zeros_like(x).index_add(0, q, x[p] * y[q])


def angles(x: Tensor, p: Tensor, q: Tensor, f: Tensor, f2: Tensor) -> Tensor:
    """Angles read two edges, edges read two atoms."""
    d = x[p] - x[q]
    return torch.zeros_like(d).index_add(0, f, d[f] * d[f2])


def rows_alone(x: Tensor) -> Tensor:
    return x.sum().exp()


def test_two_spaces() -> None:
    """Atoms are what edges point at."""
    holds(
        header(programs(messages)["infer_spaces"]),
        """
        spaces
          atoms
          edges
        pointers
          p: edges -> atoms
          q: edges -> atoms
        """,
    )
    placed = programs(messages)["infer_spaces"]
    x, y = (next(n for n in placed.graph.graph.nodes if n.name == name) for name in ("x", "y"))
    assert placed.shape(x) == placed.shape(y)


def test_three_spaces() -> None:
    """One above the other."""
    holds(
        header(programs(angles)["infer_spaces"]),
        """
        spaces
          atoms
          edges
          angles
        pointers
          p: edges -> atoms
          q: edges -> atoms
          f: angles -> edges
          f2: angles -> edges
        """,
    )


def test_rows_that_nothing_points_at_are_no_space() -> None:
    """Of them there is nothing to divide."""
    with pytest.raises(NoIndexSpaceError, match="No index space"):
        programs(rows_alone)
