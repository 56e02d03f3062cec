"""Whose memory a value of a tiled graph stands in."""

from __future__ import annotations

import torch
from torch import fx

from distcompile.passes.schedule.storage import storage
from distcompile.runtime.execution.tiles import taken
from distcompile.runtime.operators.halo import halo_join_
from distcompile.runtime.operators.messages import start, wait

aten = torch.ops.aten

GRAPH = fx.Graph()
TABLE, OTHER, REGION = map(GRAPH.placeholder, ("table", "other", "region"))


def begun(in_place: bool) -> fx.Node:
    """A message about the table."""
    return GRAPH.call_function(start, ("reduce", TABLE, OTHER, OTHER, OTHER, 0, "sum", None, in_place))


def test_views_stand_in_what_they_show() -> None:
    """However many, one of another."""
    view = GRAPH.call_function(aten.unsqueeze.default, (TABLE, 0))
    assert storage(GRAPH.call_function(aten.select.int, (view, 0, 0))) is TABLE
    assert storage(GRAPH.call_function(halo_join_, (TABLE, OTHER, OTHER, 0))) is TABLE


def test_what_a_region_adds_to_is_the_table_it_was_given() -> None:
    """What it computes anew is its own."""
    assert storage(GRAPH.call_function(taken, (REGION, 0, TABLE))) is TABLE
    own = GRAPH.call_function(taken, (REGION, 1))
    assert storage(own) is own


def test_a_message_ends_in_its_table_or_in_one_of_its_own() -> None:
    """As it was begun."""
    assert storage(GRAPH.call_function(wait, (begun(True), TABLE))) is TABLE
    apart = GRAPH.call_function(wait, (begun(False), TABLE))
    assert storage(apart) is apart


def test_other_operators_have_memory_of_their_own() -> None:
    """Copies, too."""
    copy = GRAPH.call_function(aten.clone.default, (TABLE,))
    assert storage(copy) is copy
    assert storage(TABLE) is TABLE
