"""Lengths as sums and products: which list some rows are of, and what is one row beside others."""

from __future__ import annotations

import pytest
import sympy

from distcompile.ir.lengths import Grid, Joined, grid, multiples, one_beside

ATOMS, EDGES, NEIGHBOURS = sympy.symbols("atoms edges neighbours", positive=True, integer=True)


@pytest.mark.parametrize(
    ("start", "size", "expected"),
    [
        (0, EDGES, slice(0, 1)),
        (EDGES, EDGES, slice(1, 2)),
        (0, 2 * EDGES, slice(0, 2)),
        (2 * EDGES, ATOMS, slice(2, 3)),
        (-ATOMS, ATOMS, slice(2, 3)),
        (EDGES, EDGES + ATOMS, slice(1, 3)),
        (0, ATOMS, None),
        (1, EDGES, None),
        (EDGES, 1, None),
    ],
)
def test_rows_of_a_joined_list_are_whole_lists_or_none(start: object, size: object, expected: slice | None) -> None:
    """Of edges, edges and atoms, from the front or from the end."""
    lists = Joined.of(EDGES, EDGES, ATOMS)
    assert lists.length == 2 * EDGES + ATOMS
    assert lists.ends == (0, EDGES, 2 * EDGES, 2 * EDGES + ATOMS)
    assert lists.part(start, size) == expected


@pytest.mark.parametrize(
    ("start", "number", "expected"),
    [
        (0, ATOMS, ("rows", "last")),
        (ATOMS, 1, ("one", "last")),
        (-1, 1, ("one", "last")),
        (1, ATOMS, ("rows", "first")),
        (0, 1, ("one", "first")),
        (0, ATOMS + 1, None),
        (2, ATOMS, None),
        (1, 1, None),
    ],
)
def test_one_row_beside_others(start: object, number: object, expected: tuple[str, str] | None) -> None:
    """Of a row more than there are atoms: the one, or the atoms."""
    assert one_beside(ATOMS + 1, start, number) == expected


def test_multiples_of_sizes() -> None:
    """A sum of symbols is one, with how often each comes; a number beside them, a product or a difference is none."""
    assert multiples(2 * EDGES + ATOMS) == {EDGES: 2, ATOMS: 1}
    assert multiples(ATOMS) == {ATOMS: 1}
    for other in (ATOMS + 1, ATOMS * EDGES, EDGES - ATOMS, sympy.Integer(3)):
        assert multiples(other) is None


def test_grids() -> None:
    """Rows that vary, and columns that are fixed or vary by themselves; one column, or squares, are none."""
    assert grid(16 * ATOMS) == Grid(ATOMS, sympy.Integer(16))
    for other in (ATOMS, ATOMS + 1, ATOMS * EDGES, sympy.Integer(16)):
        assert grid(other) is None
    assert Grid(ATOMS, NEIGHBOURS).is_of_rows
    assert Grid(ATOMS, NEIGHBOURS).length == ATOMS * NEIGHBOURS
    assert not Grid(ATOMS, ATOMS).is_of_rows
    assert not Grid(ATOMS, sympy.Integer(1)).is_of_rows
