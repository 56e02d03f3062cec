"""What a region loads from memory and what it computes again: the cheapest choice for all values together."""

from __future__ import annotations

import math

import pytest
from torch import fx

from distcompile.passes.spaces.store_or_recompute import choose

GRAPH = fx.Graph()
R = GRAPH.placeholder("r")
BASIS = GRAPH.call_function(len, (R,), name="basis")
WEIGHTS = GRAPH.call_function(len, (BASIS,), name="weights")
MESSAGE = GRAPH.call_function(max, (WEIGHTS, R), name="message")


def chosen(load: dict[str, float], work: dict[str, float]) -> tuple[set[str], set[str]]:
    """What is computed and what is loaded for the message."""
    found = choose([MESSAGE], lambda n: n.all_input_nodes, lambda n: load[n.name], lambda n: work.get(n.name, math.inf))
    computed, loaded = ({n.name for n in nodes} for nodes in found)
    return computed, loaded


@pytest.mark.parametrize(
    ("load", "work", "computed", "loaded"),
    [
        ({"r": 1, "basis": 9, "weights": 5}, {"basis": 9, "weights": 9}, {"message"}, {"weights", "r"}),
        ({"r": 1, "basis": 9, "weights": 5}, {"basis": 1, "weights": 1}, {"message", "weights", "basis"}, {"r"}),
        ({"r": 1, "basis": 2, "weights": 9}, {"basis": 5, "weights": 1}, {"message", "weights"}, {"basis", "r"}),
        ({"r": 1, "basis": math.inf, "weights": math.inf}, {}, {"message", "weights", "basis"}, {"r"}),
    ],
)
def test_the_cheapest(load: dict[str, float], work: dict[str, float], computed: set[str], loaded: set[str]) -> None:
    """Stored where work is dear, computed where it is cheap or where storing is not possible."""
    assert chosen(load, work) == (computed, loaded)


def test_nothing_is_loaded_for_what_needs_nothing() -> None:
    """A root without operands."""
    assert choose([R], lambda n: n.all_input_nodes, lambda n: 1.0, lambda n: 1.0) == ({R}, set())
