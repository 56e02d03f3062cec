"""Make several partial values whole by one message.

    e = all_reduce(energy)
    v = all_reduce(virial)              =>    e, v = all_reduces([energy, virial], "sum")

Neither needs the other, so the earlier waits for the later. One that rows are computed from waits for none that is
ready only after further barriers: what it is wanted for would have to be kept until then.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ...ir import META, Distributed, Placement, replace_graph
from ...ir.graphs import copy_graph
from ...ir.writer import write
from ...rules.levels import levels
from ...runtime.operators.halo import all_reduce, all_reduces
from ..spaces.place import placements


def bundle_all_reduces(program: Distributed) -> Distributed:
    """Return `program` with one message for all values that can be made whole at once."""
    module, nodes = copy_graph(program.graph)
    ready = {nodes[node]: work.available for node, work in levels(program).items()}
    bundles: dict[Any, list[fx.Node]] = {}
    needed = _needed_for_rows(module.graph)
    depths = _depths(module.graph, needed)
    last: dict[Any, int] = {}
    sums = [n for n in module.graph.nodes if n.target is all_reduce]
    for node in sums:
        last[_kind(node, depths)] = max(ready[node], last.get(_kind(node, depths), 0))
    for node in sums:
        kind = _kind(node, depths)
        bundles.setdefault((kind, ready[node] if node in needed else last[kind]), []).append(node)
    for bundle in bundles.values():
        if len(bundle) > 1:
            _bundle(module.graph, bundle)
    return replace_graph(program, module)


def _kind(node: fx.Node, depths: dict[fx.Node, int]) -> tuple[Any, ...]:
    """The properties that values in one message have in common. Of values of one depth, none depends on another."""
    return depths[node], node.args[1:], node.meta["val"].dtype


def _depths(graph: fx.Graph, needed: set[fx.Node]) -> dict[fx.Node, int]:
    """For each node, the number of all_reduces in a row before it.

    A node that is only a result is as late as it may be.
    """
    before: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before[node] = max((before[n] + (n.target is all_reduce) for n in node.all_input_nodes), default=0)
    after: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        after[node] = max((after[n] + (n.target is all_reduce) for n in node.users), default=0)
    deepest = max((before[n] for n in graph.nodes if n.target is all_reduce), default=0)
    return {n: before[n] if n in needed else deepest - after[n] for n in graph.nodes}


def _needed_for_rows(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that a value with rows depends on."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        places = placements(node.meta.get(META, ()))
        if any(isinstance(p, Placement) and p.sharded for p in places) or any(u in found for u in node.users):
            found.add(node)
    return found


def _bundle(graph: fx.Graph, bundle: list[fx.Node]) -> None:
    """Replace all_reduces by one at the place of the last, and move the readers of the earlier ones behind it."""
    order = list(graph.nodes)
    first, last = order.index(bundle[0]), order.index(bundle[-1])
    with graph.inserting_after(bundle[-1]):
        reduction = (*bundle[0].args[1:], "sum")[0]
        values, places = [n.meta["val"] for n in bundle], tuple(n.meta[META] for n in bundle)
        args = ([n.args[0] for n in bundle], reduction)
        message = write(graph, all_reduces, args, value=values, place=places)
    place = message
    for i, node in enumerate(bundle):
        with graph.inserting_after(place):
            part = write(graph, operator.getitem, (message, i), like=node)
        node.replace_all_uses_with(part)
        place = part
    late = set(message.users)
    for node in order[first:last]:
        if any(n in late for n in node.all_input_nodes):
            place.append(node)
            place = node
            late.add(node)
    for node in bundle:
        graph.erase_node(node)
