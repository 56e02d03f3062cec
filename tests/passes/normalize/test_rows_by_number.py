"""A row named by its number is found by comparing row numbers, wherever it is read, written or differentiated."""

from __future__ import annotations

import pytest
from rewriting import keeps, rewrites

from distcompile.passes.normalize.normalize import normalize


def row(number: str) -> str:
    """Where the row of a number is, of x."""
    return f"reshape(arange(n), [n, 1]) == {number}"


REWRITTEN = {
    "x[2]": f"sum(where({row('2')}, x, 0.0), [0])",
    "x[-1]": f"sum(where({row('n - 1')}, x, 0.0), [0])",
    "x[2:3]": f"sum(where({row('2')}, x, 0.0), [0], True)",
    "slice_scatter(x, g[None], 0, 2, 3)": f"where({row('2')}, g[None], x)",
    "select_scatter(x, g, 0, -1)": f"where({row('n - 1')}, g[None], x)",
    "cat([x[:-1], g[None]])": f"where({row('n - 1')}, g[None], x)",
    "cat([g[None], x[1:]])": f"where({row('0')}, g[None], x)",
    "select_backward(g, [n, 3], 0, 1)": f"where({row('1')}, g[None], 0.0)",
    "slice_backward(g[None], [n, 3], 0, 1, 2, 1)": f"where({row('1')}, g[None], 0.0)",
    "cat([s, zeros(N - n)])": "index_add(zeros(N), 0, arange(n), s)",
    "w[:n]": "index_select(w, 0, arange(n))",
    "slice_backward(s, [N], 0, 0, n, 1)": "index_add(zeros(N), 0, arange(n), s)",
}

KEPT = ("select(x, 1, 2)", "slice(x, 1, 0, 1)", "k[2]", "cat([x, y])", "cat([g[None], x])", "x[1:]", "x[2:4]")


@pytest.mark.parametrize("before", REWRITTEN)
def test_found_by_comparison(before: str) -> None:
    """On several ranks one of them has the row."""
    rewrites(normalize, before, REWRITTEN[before])


@pytest.mark.parametrize("expression", KEPT)
def test_columns_integers_and_ranges_are_left_alone(expression: str) -> None:
    """What every graph has as many of, what the index program computes, and what names no single row."""
    keeps(normalize, expression)
