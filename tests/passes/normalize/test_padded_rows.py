"""A table with one row more: pointers to it are told apart, and no table of that length is left."""

from __future__ import annotations

import pytest
from rewriting import EXAMPLES, keeps, names_in, program, rewrites, text

from distcompile.passes.normalize.normalize import normalize

ROWS = "scalar_tensor(n, dtype=int)"
NUMBER = f"where(r < 0, r + {ROWS} + 1, r)"
NOWHERE = f"({NUMBER} == {ROWS})"
THERE, ROW = f"logical_not({NOWHERE})", f"masked_fill({NUMBER}, {NOWHERE}, 0)"
"""Whether r points at a row, and at which, where the row more comes last."""

FIRST = f"({NUMBER} == full([], 0, dtype=int))"
NOT_FIRST, ROW_AFTER_FIRST = f"logical_not({FIRST})", f"masked_fill({NUMBER} - 1, {FIRST}, 0)"
"""The same where it comes first."""

REWRITTEN = {
    "index_select(cat([s, e]), 0, r)": f"where({THERE}, index_select(s, 0, {ROW}), e)",
    "index_select(cat([e, s]), 0, r)": f"where({NOT_FIRST}, index_select(s, 0, {ROW_AFTER_FIRST}), e)",
    "index_add(zeros(n + 1), 0, r, w)[:n]": f"index_add(zeros(n), 0, {ROW}, where({THERE}, w, 0.0))",
    "index_add(zeros(n + 1), 0, r, w)[1:]": f"index_add(zeros(n), 0, {ROW_AFTER_FIRST}, where({NOT_FIRST}, w, 0.0))",
    "index_add(zeros(n + 1), 0, r, w)[n:]": f"unsqueeze(sum(where(logical_not({THERE}), w, 0.0), [0]), 0)",
    "slice_backward(s, [n + 1], 0, 0, n, 1)": "cat([s, zeros(1)])",
    "slice_backward(s, [n + 1], 0, 1, 2**63 - 1, 1)": "cat([zeros(1), s])",
    "slice_backward(e, [n + 1], 0, n, 2**63 - 1, 1)": "cat([zeros(n), e])",
}


@pytest.mark.parametrize("before", REWRITTEN)
def test_no_table_is_a_row_longer(before: str) -> None:
    """What points at the row more is masked; -1 is that row, too."""
    rewrites(normalize, before, REWRITTEN[before])


def test_sums_of_padded_tables_are_selected_one_by_one() -> None:
    """The gradient of a table that is read twice is such a sum."""
    before = "index_select(cat([s, e]) + cat([2 * s, e]), 0, r)"
    one, two = (f"where({THERE}, index_select({table}, 0, {ROW}), e)" for table in ("s", "2 * s"))
    rewrites(normalize, before, f"{one} + {two}")


@pytest.mark.parametrize("expression", ["index_select(cat([s, s]), 0, r)", "index_select(cat([x, x], 1), 0, p)"])
def test_other_tables_are_left_alone(expression: str) -> None:
    """Two lists of atoms, and features side by side."""
    keeps(normalize, expression)


def test_the_examples_point_at_the_row_more() -> None:
    """Or the tests above would hold nothing of it."""
    assert EXAMPLES["r"].max() == len(EXAMPLES["s"])
    assert "cat" in text(program("cat([s, e])", names_in("cat([s, e])")))
