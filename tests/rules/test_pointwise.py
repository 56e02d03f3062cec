"""Elementwise operators: rows stay rows, whatever they meet that is the same on every rank."""

from __future__ import annotations

import pytest
from printed import placed

PLACED = {
    "tanh(x)": "f64[atoms, 3]",
    "x + y": "f64[atoms, 3]",
    "x * g": "f64[atoms, 3]",
    "g - x": "f64[atoms, 3]",
    "x * x[:, :1]": "f64[atoms, 3]",
    "x[p] * 2.0": "f64[edges, 3]",
    "where(x > 0, x, 0.0)": "f64[atoms, 3]",
    "x > 0.5": "b8[atoms, 3]",
    "x.to(torch.float32)": "f32[atoms, 3]",
    "clamp(x, 0.0, 1.0)": "f64[atoms, 3]",
    "x.sum() * g": "f64[3] partial",
    "exp(x.sum()) * x": "f64[atoms, 3]",
    "tanh(x.T)": "f64[3, atoms]",
}


@pytest.mark.parametrize("expression", PLACED)
def test_rows_stay_rows(expression: str) -> None:
    """In the dimension that they were in; a number of all rows is one of every row."""
    assert placed(expression) == PLACED[expression]
