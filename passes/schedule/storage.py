"""Whose memory a value of a tiled graph stands in: messages and regions write into tables that are there."""

from __future__ import annotations

from torch import fx

from ...ir.operators import facts
from ...rules.messages import ends_in_place
from ...runtime.execution.tiles import taken
from ...runtime.operators.messages import wait


def storage(node: fx.Node) -> fx.Node:
    """The node whose memory `node` looks at."""
    while node.op == "call_function":
        if facts(node).shares_memory:
            node = node.args[0]  # type: ignore[assignment]
        elif node.target is wait and ends_in_place(node.args[0]):  # type: ignore[arg-type]
            node = node.args[1]  # type: ignore[assignment]
        elif node.target is taken and len(node.args) == 3:
            node = node.args[2]  # type: ignore[assignment]
        else:
            break
    return node
