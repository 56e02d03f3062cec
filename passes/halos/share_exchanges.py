"""Exchange each value once.

    h1 = halo_exchange(x); h2 = halo_exchange(x)   =>   h2 -> h1

The first exchange stands before the first gather, so later gathers of the same table find it done.
"""

from __future__ import annotations

from torch import fx

from ...ir import Distributed, replace_graph
from ...ir.graphs import copy_graph
from ...rules.messages import is_message


def share_exchanges(program: Distributed) -> Distributed:
    """Return `program` with one halo exchange per exchanged value."""
    module, _ = copy_graph(program.graph)
    first: dict[tuple[object, ...], fx.Node] = {}
    for node in list(module.graph.nodes):
        if not is_message(node, "exchange"):
            continue
        if node.args in first:
            node.replace_all_uses_with(first[node.args])
            module.graph.erase_node(node)
        else:
            first[node.args] = node
    return replace_graph(program, module)
