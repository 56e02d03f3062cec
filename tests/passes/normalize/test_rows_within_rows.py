"""Rows that lie within rows: numbers of both in one index become a row of a rank's own and a place there."""

from __future__ import annotations

import pytest
from rewriting import keeps, rewrites

from distcompile.passes.normalize.normalize import normalize

FLAT = "(p * 16 + q)"
PLACES = f"[div({FLAT}, 16, rounding_mode='floor'), remainder({FLAT}, 16)]"
ELEMENT = "[div(j, 16, rounding_mode='floor'), remainder(j, 16)]"
WIDTH = "scalar_tensor(l, dtype=int)"

REWRITTEN = {
    f"index_add(zeros(n * 16), 0, {FLAT}, w)": f"reshape(index_put(zeros(n, 16), {PLACES}, w, True), [n * 16])",
    f"index_select(b, 0, {FLAT})": f"index(reshape(b, [n, 16]), {PLACES})",
    f"b[{FLAT}]": f"index(reshape(b, [n, 16]), {PLACES})",
    "b[j]": f"index(reshape(b, [n, 16]), {ELEMENT})",
    "cat([b])[j]": f"index(reshape(b, [n, 16]), {ELEMENT})",
    "index_add(zeros(n * 16), 0, j, full([j.shape[0]], 1.0)).reshape(n, 16)": "reshape(reshape(index_put("
    f"zeros(n, 16), {ELEMENT}, full([j.shape[0]], 1.0), True), [n * 16]), [n, 16])",
    "h.reshape(n * l)[j]": "index(reshape(h.reshape(n * l), [n, l]),"
    f" [div(j, {WIDTH}, rounding_mode='floor'), remainder(j, {WIDTH})])",
}


@pytest.mark.parametrize("before", REWRITTEN)
def test_a_row_and_a_place(before: str) -> None:
    """The table gets a dimension of its own for the places."""
    rewrites(normalize, before, REWRITTEN[before])


@pytest.mark.parametrize(
    "expression",
    ["(b + b)[j]", "(b + b)[p * 8 + q]", "x[p]", "index_add(x, 0, p, v)", "index_add(zeros(n * 16), 0, p, w)"],
)
def test_other_indices_are_left_alone(expression: str) -> None:
    """Of another multiple, into a list that is not shown as a matrix, or into a table of one row an atom."""
    keeps(normalize, expression)
