"""Masks, overwrites, elements of rows, tables of one value: each in the one way that later passes know."""

from __future__ import annotations

import pytest
from rewriting import becomes, keeps, names_in, program, rewrites

from distcompile.passes.normalize.normalize import WITHOUT_SELF, normalize

REWRITTEN = {
    # masks
    "x[mask]": "index_select(x, 0, nonzero(mask))",
    "masked_select(s, mask)": "index_select(s, 0, nonzero(mask))",
    "index_put(x, [mask], g)": "where(unsqueeze(mask, -1), g, x)",
    # rows that are written
    "index_put(zeros(n, 16), [c, c], u[:, 0])": "index_put(zeros(n, 16), [c, distinct_rows(c, c)], u[:, 0], True)",
    # sums
    "index_put(x, [p], y[p], True)": "index_add(x, 0, p, index(y, [p]))",
    "index_put(t, [k, k], s, True)": "t + index_put(zeros(5, 3), [k, k], s, True)",
    "index_put(x, [arange(n), k], s, True)": "scatter_add(x, 1, unsqueeze(_to_copy(k, dtype=int), 1), unsqueeze(s, 1))",
    "index_add(t, 0, k, x)": "t + index_add(zeros(5, 3), 0, k, x)",
    "index_add(t, 0, k, x, alpha=2)": "t + index_add(zeros(5, 3), 0, k, torch.ops.aten.mul.Scalar(x, 2))",
    "scatter_reduce(s, 0, p, w, 'sum')": "scatter_add(s, 0, p, w)",
    "scatter_reduce(s, 0, p, w, 'mean')": "scatter_add(s, 0, p, w) / count",
    "scatter_add(x, 0, p[:, None].expand(v.shape), v)": "index_add(x, 0, reshape(p[:, None], [p.shape[0]]), v)",
    "embedding_dense_backward(x, k, 5, -1, False)": "index_add(zeros(5, 3), 0, k, x)",
    "embedding_dense_backward(x, k, 5, 1, False)": "index_add(zeros(5, 3), 0, k,"
    " where(unsqueeze(k != 1, -1), x, zeros(n, 3)))",
    # elements
    "x[arange(n), k]": "squeeze(gather(x, 1, unsqueeze(_to_copy(k, dtype=int), 1)), 1)",
    "gather(x, 0, p[:, None].expand(v.shape))": "index_select(x, 0, reshape(p[:, None], [p.shape[0]]))",
    # rows that are made, repeated and cut
    "arange(n, float)": "_to_copy(arange(n), dtype=float)",
    "zeros_like(x)": "zeros(n, 3)",
    "new_full(x, [n], 2.5)": "full([n], 2.5)",
    "repeat(g, [n, 1])": "expand(g, [n, 3])",
    "split(w, l)[1]": "slice(w, 0, l, l * 2)",
    # complex numbers
    "view_as_complex(z) * s": "complex(select(z, -1, 0), select(z, -1, 1)) * s",
}
"""Expressions, and what becomes of them."""


def hit(rows: str, table: str) -> str:
    """Which rows of a table are among those of some numbers."""
    return f"index_fill.int_Scalar(full([{table}.shape[0]], False, dtype=b8), 0, {rows}, True)"


CHOSEN = "select.int(nonzero(mask), 1, 0)"
NUMBERS = "_to_copy(c, dtype=i64)"
DISTINCT = f"distinct_rows({NUMBERS})"
ZERO = "full([], 0, dtype=f64)"

OVERWRITTEN = {
    "index_put(s, [mask], s[mask] * 2)": f"index_add(where.self({hit(CHOSEN, 's')}, {ZERO}, s), 0, {CHOSEN},"
    f" mul.Tensor(index_select(s, 0, {CHOSEN}), 2))",
    "index_put(x, [c], u)": f"index_add(where.self(unsqueeze({hit(DISTINCT, 'x')}, -1), {ZERO}, x), 0, {DISTINCT}, u)",
    "index_put(x, [c], g)": f"where.self(unsqueeze({hit(NUMBERS, 'x')}, -1), g, x)",
}
"""Rows that are written, which no capture would say as the pass does."""

KEPT = (
    "x[p]",
    "index_select(x, 0, p)",
    "index_add(x, 0, p, v)",
    "index_add(zeros(5, 3), 0, k, x)",
    "scatter_add(s, 0, p, w)",
    "scatter_reduce(s, 0, p, w, 'amax')",
    "gather(x, 1, k[:, None])",
    "where(mask, 0.0, s)",
    "full([n, 3], 0.0)",
    "arange(n)",
)


@pytest.mark.parametrize("before", REWRITTEN)
def test_said_in_one_way(before: str) -> None:
    """The exact operators that later passes meet, of the same value."""
    rewrites(normalize, before, REWRITTEN[before])


@pytest.mark.parametrize("before", OVERWRITTEN)
def test_rows_that_are_written_are_emptied_and_added_to(before: str) -> None:
    """Rows of a pointer must be distinct, unless all are given one row; those of a mask are."""
    becomes(normalize, before, OVERWRITTEN[before])


@pytest.mark.parametrize("expression", KEPT)
def test_what_is_said_so_is_left_alone(expression: str) -> None:
    """The smaller vocabulary itself."""
    keeps(normalize, expression)


def test_a_largest_value_without_the_table_says_so() -> None:
    """Rows that are written to start from nothing, and the scatter is marked."""
    before = "scatter_reduce(s, 0, p, w, 'amax', include_self=False)"
    written = "scatter_add(zeros(n), 0, p, full([w.shape[0]], 1.0)) > 0"
    rewrites(normalize, before, f"scatter_reduce(where({written}, full([n], -torch.inf), s), 0, p, w, 'amax')")
    graph = normalize(program(before, names_in(before))).graph.graph
    assert [n.meta.get(WITHOUT_SELF) for n in graph.nodes if "scatter_reduce" in str(n.target)] == [True]
