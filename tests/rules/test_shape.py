"""Operators that move elements about: where the rows go."""

from __future__ import annotations

import pytest
from printed import placed

PLACED = {
    "reshape(x, [n, 3, 1])": "f64[atoms, 3, 1]",
    "reshape(x, [n * 3])": "f64[atoms*3]",
    "reshape(reshape(x, [n * 3]), [n, 3]) + x": "f64[atoms, 3]",
    "x.T": "f64[3, atoms]",
    "unsqueeze(x, 0)": "f64[1, atoms, 3]",
    "cat([x, x], 1)": "f64[atoms, 6]",
    "stack([x, y * x], 0)": "f64[2, atoms, 3]",
    "stack([x, y * x], 1)": "f64[atoms, 2, 3]",
    "x[:, 1:]": "f64[atoms, 2]",
    "x[:, 0]": "f64[atoms]",
    "expand(x[:, None], [n, 5, 3])": "f64[atoms, 5, 3]",
    "flip(x, [1])": "f64[atoms, 3]",
    "repeat_interleave(x, 2, 1)": "f64[atoms, 6]",
    "split(x, 1, 1)[2]": "f64[atoms, 1]",
    "zeros(n, 4)": "f64[atoms, 4]",
}


@pytest.mark.parametrize("expression", PLACED)
def test_where_the_rows_go(expression: str) -> None:
    """A dimension may be of two factors, rows outermost."""
    assert placed(expression) == PLACED[expression]
