"""Whose memory a value of a tiled graph stands in: messages and regions write into tables that are there."""

from __future__ import annotations

from torch import fx

from ...rules.messages import ends_in_place
from ...rules.shape import VIEWS
from ...runtime.execution.tiles import taken
from ...runtime.operators.halo import halo_join_
from ...runtime.operators.messages import wait

_SAME_MEMORY = VIEWS | {halo_join_}
"""Operators of a tiled graph whose results stand in their first operand's memory."""


def storage(node: fx.Node) -> fx.Node:
    """The node whose memory `node` looks at."""
    while node.op == "call_function":
        if node.target in _SAME_MEMORY:
            node = node.args[0]  # type: ignore[assignment]
        elif node.target is wait and ends_in_place(node.args[0]):  # type: ignore[arg-type]
            node = node.args[1]  # type: ignore[assignment]
        elif node.target is taken and len(node.args) == 3:
            node = node.args[2]  # type: ignore[assignment]
        else:
            break
    return node
