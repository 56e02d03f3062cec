"""Messages as values: what is read off an operator is written as the same operator."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from distcompile.rules.messages import ends_in_place, is_message, message
from distcompile.runtime.operators.halo import halo_exchange, halo_gather, halo_reduce, halo_scatter
from distcompile.runtime.operators.messages import start, wait

GRAPH = fx.Graph()
X, ROWS, SPLITS, N, ONTO, PLACES = map(GRAPH.placeholder, ("x", "rows", "splits", "n", "onto", "places"))

OPERATORS: list[tuple[Any, tuple[Any, ...]]] = [
    (halo_exchange, (X, ROWS, SPLITS, N, 0)),
    (halo_gather, (X, ROWS, SPLITS, N, 1)),
    (halo_gather, (X, ROWS, SPLITS, N, 0, PLACES)),
    (halo_reduce, (X, ROWS, SPLITS, N, 0)),
    (halo_reduce, (X, ROWS, SPLITS, N, 0, "amax")),
    (halo_reduce, (X, ROWS, SPLITS, N, 0, "sum", PLACES)),
    (halo_scatter, (X, ROWS, SPLITS, ONTO, 0)),
    (halo_scatter, (X, ROWS, SPLITS, ONTO, 0, PLACES)),
]


@pytest.mark.parametrize(("operator", "given"), OPERATORS)
def test_written_as_it_was_read(operator: Any, given: tuple[Any, ...]) -> None:
    """With the same operands in the same places."""
    found = message(GRAPH.call_function(operator, given))
    assert found is not None
    again = found.written(GRAPH, value=None)
    assert (again.target, again.args) == (operator, given)
    assert found.of_all_rows is (PLACES not in given)
    assert found.to_readers is (operator in (halo_exchange, halo_gather))


@pytest.mark.parametrize("in_place", [False, True])
def test_begun_and_waited_for(in_place: bool) -> None:
    """In two phases it is the same message, and lands on the rows that it began with."""
    operator = GRAPH.call_function(halo_reduce, (X, ROWS, SPLITS, N, 0, "amax"))
    found = message(operator)
    assert found is not None
    end = found.begun(GRAPH, operator, in_place)
    begin = end.all_input_nodes[0]
    assert message(begin) == found
    assert ends_in_place(begin) is in_place
    assert (begin.target, end.target, end.args) == (start, wait, (begin, X))


def test_kinds() -> None:
    """Other operators are none; a kind may be asked for."""
    reduce = GRAPH.call_function(halo_reduce, (X, ROWS, SPLITS, N, 0))
    assert is_message(reduce) and is_message(reduce, "reduce", "scatter") and not is_message(reduce, "exchange")
    assert not is_message(X) and message(X) is None
