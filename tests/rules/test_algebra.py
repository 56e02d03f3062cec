"""Products and reductions: over rows each rank has a part of the result."""

from __future__ import annotations

import pytest
from printed import placed

PLACED = {
    "x @ torch.ones(3, 8, dtype=float)": "f64[atoms, 8]",
    "x.T @ (x * y)": "f64[3, 3] partial",
    "einsum('ni,nj->nij', [x, y])": "f64[atoms, 3, 3]",
    "einsum('ni,nj->ij', [x, y])": "f64[3, 3] partial",
    "bmm(x[:, :, None], x[:, None, :])": "f64[atoms, 3, 3]",
    "sum(x, [0])": "f64[3] partial",
    "sum(x, [1])": "f64[atoms]",
    "sum(x)": "f64[] partial",
    "sum(x, [0], True)": "f64[1, 3] partial",
    "mean(x, [0])": "f64[3] partial",
    "amax(x, [1])": "f64[atoms]",
    "cumsum(x, 1)": "f64[atoms, 3]",
    "softmax(x, 1)": "f64[atoms, 3]",
    "sort(x, 1)[0]": "f64[atoms, 3]",
    "layer_norm(x, [3])": "f64[atoms, 3]",
}


@pytest.mark.parametrize("expression", PLACED)
def test_what_each_rank_has(expression: str) -> None:
    """Its rows, or its part of a sum over them."""
    assert placed(expression) == PLACED[expression]


@pytest.mark.parametrize("expression", ["cumsum(x, 0)", "sort(x, 0)[0]", "cumprod(x, 0)"])
def test_what_runs_along_rows_is_whole(expression: str) -> None:
    """A rule that took it for this rank's rows would be wrong from the first row of the second rank on."""
    assert "atoms" not in placed(expression)
