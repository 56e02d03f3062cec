"""Make partial values whole, as late as possible, and once.

    e = sum(energies)      partial            e = sum(energies)
    y = mul(e, e)                       =>    w = all_reduce(e);  y = mul(w, w)
    return e, mul(e, 2)                       return w, mul(w, 2)

A partial value goes through linear operators as it is. It becomes whole in front of the first operator that needs
so, and in the results; one all_reduce serves all of them, and what is made of nothing but such values is whole too.
A partial value that meets such a one is made whole first, or every rank would add it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ...ir import META, Distributed, Placement, replace_graph
from ...ir.graphs import copy_graph
from ...ir.writer import write
from ...runtime.operators.halo import all_reduce
from ..spaces.place import WHOLE, placements


def insert_all_reduces(program: Distributed) -> Distributed:
    """Return `program` with an all_reduce on every partial value that is needed whole."""
    module, _ = copy_graph(program.graph)
    whole: dict[fx.Node, fx.Node] = {}
    for node in [n for n in module.graph.nodes if n.op != "output"]:
        parts = [n for n in node.all_input_nodes if n not in whole and _is_partial(n)]
        if parts and _is_partial(node) and any(whole.get(n) is n for n in node.all_input_nodes):
            whole.update({part: _made_whole(module.graph, part) for part in parts})
            parts = []
        if not parts and _is_partial(node) and any(n in whole for n in node.all_input_nodes):
            node.args = fx.map_arg(node.args, lambda n: whole.get(n, n))
            node.meta[META] = _whole(node.meta[META])
            whole[node] = node
        found = node.meta[META]
        needy = [u for u in node.users if u.op == "output" or node.name in u.meta.get(WHOLE, ())]
        if isinstance(found, Placement) and found.partial and needy:
            whole[node] = _made_whole(module.graph, node)
            for user in needy:
                user.replace_input_with(node, whole[node])
    return replace_graph(program, module)


def _made_whole(graph: fx.Graph, node: fx.Node) -> fx.Node:
    found = node.meta[META]
    with graph.inserting_after(node):
        how = () if found.reduction == "sum" else (found.reduction,)
        place = Placement(found.dims, rule="all_reduce")
        return write(graph, all_reduce, (node, *how), value=node.meta["val"], place=place)


def _is_partial(node: fx.Node) -> bool:
    return any(p.partial for p in placements(node.meta[META]))


def _whole(found: Any) -> Any:
    return tuple(p.whole() for p in found) if isinstance(found, tuple) else found.whole()
