"""Pass 12: make partial values whole, as late as possible.

    e = sum(energies)      partial            e = sum(energies)
    y = mul(e, e)                       =>    w = all_reduce(e);  y = mul(w, w)
    return e                                  return w

A partial value goes through linear operators as it is. It becomes whole in front of the first operator that needs
so, and in the results; one all_reduce serves all of them.
"""

from __future__ import annotations

from ..ir import META, Placement, Program, copy_graph, placement, replace_graph
from ..runtime.halo import all_reduce
from .place import WHOLE


def insert_all_reduces(program: Program) -> Program:
    """Return `program` with an all_reduce on every partial value that is needed whole."""
    module, _ = copy_graph(program.graph)
    for node in list(module.graph.nodes):
        needy = [u for u in node.users if u.op == "output" or node.name in u.meta.get(WHOLE, ())]
        found = placement(node) if node.op != "output" else Placement()
        if not (isinstance(found, Placement) and found.partial and needy):
            continue
        with module.graph.inserting_after(node):
            how = () if found.reduction == "sum" else (found.reduction,)
            whole = module.graph.call_function(all_reduce, (node, *how))
        whole.meta = {META: Placement(found.dims, rule="all_reduce"), "val": node.meta["val"]}
        for user in needy:
            user.replace_input_with(node, whole)
    return replace_graph(program, module)
