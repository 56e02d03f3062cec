"""Gathers and scatters: from one space to the other, or along features."""

from __future__ import annotations

import pytest
from printed import placed

PLACED = {
    "x[p]": "f64[edges, 3]",
    "index_select(x, 0, q)": "f64[edges, 3]",
    "x.T[:, p]": "f64[3, edges]",
    "x[:, torch.tensor([0, 2])]": "f64[atoms, 2]",
    "gather(x, 1, zeros_like(x).to(int))": "f64[atoms, 3]",
    "index_add(zeros(n, 3), 0, q, x[p])": "f64[atoms, 3]",
    "index_add(zeros(n, 3), 0, q, x[p])[p]": "f64[edges, 3]",
    "index_add(zeros(5, 3), 0, k, x)": "f64[5, 3] partial",
    "full([5, 3], 2.0)[k] + x": "f64[atoms, 3]",
    "x[mask]": "f64[rows, 3]",
    "scatter_reduce(zeros(n, 3), 0, q[:, None].expand(N, 3), x[p] * w[:, None], 'amax')": "f64[atoms, 3]",
}


@pytest.mark.parametrize("expression", PLACED)
def test_which_rows_come(expression: str) -> None:
    """Rows of the pointer where it reads, of the table where it adds; a table of fixed length is partial."""
    assert placed(expression) == PLACED[expression]
