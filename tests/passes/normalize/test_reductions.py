"""What runs over all rows is made of sums and largest values; what runs within a row is left alone."""

from __future__ import annotations

import pytest
from rewriting import keeps, rewrites

from distcompile.passes.normalize.normalize import normalize

OFF = "(x - sum(x, [0], True) / n)"
TOP = "nan_to_num(stop_gradient(amax(s, [0], True)), None, 0.0, 0.0)"
LARGEST = "stop_gradient(amax(s, [0]))"
WIDE = "unsqueeze(stop_gradient(amax(s, [0])), 0)"
SOFT = "softmax(stop_gradient(detach(s)), 0)"

REWRITTEN = {
    "mean(x, [0])": "sum(x, [0]) / n",
    "mean(x, [0, 1])": "sum(x, [0, 1]) / n / 3",
    "mean(x, [0], True)": "sum(x, [0], True) / n",
    "linalg_vector_norm(x, 2, [0])": "sqrt(sum(x * x, [0]))",
    "var(x, [0])": f"sum({OFF} * {OFF}, [0]) / (n - 1)",
    "var(x, [0], correction=0)": f"sum({OFF} * {OFF}, [0]) / n",
    "std(x, [0])": f"sqrt(sum({OFF} * {OFF}, [0]) / (n - 1))",
    "logsumexp(s, [0])": f"torch.ops.aten.squeeze.dims(log(sum(exp(s - {TOP}), [0], True)) + {TOP}, [0])",
    "_softmax(s, 0, False)": f"exp(s - {TOP}) / sum(exp(s - {TOP}), [0], True)",
    "_log_softmax(s, 0, False)": f"(s - {TOP}) - log(sum(exp(s - {TOP}), [0], True))",
    "_softmax_backward_data(s, s, 0, float)": "s * (s - sum(s * s, [0], True))",
    "_log_softmax_backward_data(s, s, 0, float)": "s - exp(s) * sum(s, [0], True)",
    "amax(s, [0])": f"{LARGEST} + sum(where(s == {WIDE}, nan_to_num(s - {WIDE}, 0.0), 0.0), [0])"
    f" / sum(_to_copy(s == {WIDE}, dtype=float), [0])",
    "any(mask)": "sum(_to_copy(mask != 0, dtype=int), [0]) > 0",
    "all(mask)": "sum(_to_copy(mask == 0, dtype=int), [0]) == 0",
}

KEPT = (
    "mean(x, [1])",
    "linalg_vector_norm(x, 2, [1])",
    "linalg_vector_norm(x, 3, [0])",
    "var(x, [1])",
    "logsumexp(x, [1])",
    "_softmax(x, 1, False)",
    "amax(x, [1])",
    "max(k)",
    "amax(stop_gradient(x), [0])",
    "any(x > 1, 1)",
)


@pytest.mark.parametrize("before", REWRITTEN)
def test_over_rows(before: str) -> None:
    """By sums of all ranks; no gradient goes through the largest value itself."""
    rewrites(normalize, before, REWRITTEN[before])


@pytest.mark.parametrize("expression", KEPT)
def test_within_rows_and_without_gradient_nothing_changes(expression: str) -> None:
    """Each row has all that it needs; integers, and what is held, have no gradient to share."""
    keeps(normalize, expression)
