"""The values that a region loads from memory, and those that it computes again.

    level 1   edges: r -> basis -> weights -> message         level 3 needs weights and r
    store weights: written once, read once, held for two levels;    or compute them again from r

Every value that a region needs from an earlier level is either loaded or recomputed from its operands. The cheapest
choice for all of them together is a minimum cut between what is there anyway and what the region makes, with the
capacity of a value being what its storage costs and that of an operator being what its work costs.

Source: the formulation follows rematerialisation by minimum cut, Jain et al., Checkmate, MLSys 2020 (the problem), and
Picard, Management Science 22, 1268 (1976) (closures by minimum cut).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import networkx as nx
import torch
from torch import fx

aten = torch.ops.aten


def choose(
    roots: Iterable[fx.Node],
    operands: Callable[[fx.Node], list[fx.Node]],
    load_cost: Callable[[fx.Node], float],
    work: Callable[[fx.Node], float],
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Choose the values to load and those to compute.

    Args:
        roots: the nodes that must be computed. So must nodes that these need and that have an infinite load cost.
        operands: the operands of a node that are rows of the same space (others are there anyway).
        load_cost: cost of having a value loaded; infinite if it cannot be.
        work: cost of computing a node that may be loaded.

    Returns:
        (computed, loaded).
    """
    computed, needed = set(roots), set[fx.Node]()
    pending = list(computed)
    while pending:  # the nodes that must be computed, and those that they need
        for operand in operands(pending.pop()):
            if operand in computed:
                continue
            if math.isfinite(load_cost(operand)):
                needed.add(operand)
            else:
                computed.add(operand)
                pending.append(operand)
    graph = nx.DiGraph()
    graph.add_edges_from(((node, "out"), "sink") for node in needed)
    pending, seen = list(needed), set(needed)
    while pending:
        node = pending.pop()
        graph.add_edge((node, "in"), (node, "out"), capacity=load_cost(node))
        graph.add_edge("source", (node, "in"), capacity=work(node))
        for operand in operands(node):
            graph.add_edge((operand, "out"), (node, "in"))
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
    if not seen:
        return computed, set()
    _, (_, sink_side) = nx.minimum_cut(graph, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
    computed |= {n for n in seen if (n, "in") in sink_side}
    return computed, {n for n in seen if n not in computed and (n, "out") in sink_side}
