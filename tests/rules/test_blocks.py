"""Rows of several kinds in one dimension: lists that the model joins, and cuts again."""

from __future__ import annotations

import pytest
from printed import placed

PLACED = {
    "cat([x[p], x])": "f64[edges_atoms, 3]",
    "cat([x, x[p]])": "f64[atoms_edges, 3]",
    "cat([x[p], x[q]])": "f64[2*edges, 3]",
    "tanh(cat([x[p], x]))": "f64[edges_atoms, 3]",
    "cat([x[p], x])[p.shape[0]:]": "f64[atoms, 3]",
    "cat([x[p], x])[: p.shape[0]]": "f64[edges, 3]",
    "cat([x[p], x]).sum(0)": "f64[3] partial",
}


@pytest.mark.parametrize("expression", PLACED)
def test_blocks_of_rows(expression: str) -> None:
    """A rank's rows of such a list are those of the first block, then of the second."""
    assert placed(expression) == PLACED[expression]
