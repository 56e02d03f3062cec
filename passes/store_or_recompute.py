"""Pass 17, second half: what a region loads from memory and what it computes again.

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
import sympy
import torch
from torch import fx

from ..ir import Program, is_random
from ..rules.indexing import accesses
from ..rules.pointwise import is_pointwise
from ..rules.shape import VIEWS

aten = torch.ops.aten

FLOPS_PER_BYTE = 6.0
"""Floating-point operations in the time in which one byte is read: what makes matrix products worth storing."""

_FREE = VIEWS | {aten.reshape.default, aten.full.default}
"""Views, and constants."""

_PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}
"""Matrix products, and the position of the first factor."""


def bytes_per_row(program: Program, node: fx.Node) -> float:
    """Bytes of one row of a value."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return math.inf
    return math.prod(_width(program, size) for size in program.shape(node)) * value.element_size()


def _width(program: Program, size: sympy.Expr) -> int:
    """Entries of a row in a dimension: 3 in ``3*edges``; of a length of each graph, as many as the example had."""
    if size.is_Integer:
        return int(size)
    space = program.space_of(size)  # of its own may be 2*edges
    if space is not None:
        return 1 if space.sharded else program.capture.hint((space.all_of or space).symbol)
    number = size.as_coeff_Mul()[0]
    return int(number) if number.is_Integer else 1


def load_per_row(program: Program, node: fx.Node) -> float:
    """What loading one row of a value costs, in bytes; of a value and its transpose, better the value."""
    return bytes_per_row(program, node) * (1.001 if node.target in _FREE else 1.0)


def work_per_row(program: Program, node: fx.Node) -> float:
    """What computing one row of an operator costs, in bytes moved in the same time."""
    if is_random(node):
        return math.inf  # a random number drawn again is another one
    if node.target in _FREE:
        return 0.0
    size = bytes_per_row(program, node)
    if not math.isfinite(size):
        size = sum(bytes_per_row(program, n) for n in node.all_input_nodes[:1])
    if node.target in _PRODUCTS:
        return product_flops(program, node) / FLOPS_PER_BYTE + size
    if accesses(node):
        return 1.5 * size
    return (0.3 if is_pointwise(node.target) else 1.0) * size


def product_flops(program: Program, node: fx.Node) -> float:
    """Floating-point operations of one row of a matrix product; 0 for other operators."""
    inner = product_length(program, node)
    if inner is None:
        return 0.0
    elements = bytes_per_row(program, node) / node.meta["val"].element_size()
    return 2 * (int(inner) if inner.is_Integer else 1) * elements


def product_length(program: Program, node: fx.Node) -> sympy.Expr | None:
    """How many products are added up for each element of a matrix product; None for other operators."""
    if node.target not in _PRODUCTS:
        return None
    first = node.args[_PRODUCTS[node.target]]
    return program.shape(first)[-1]  # type: ignore[arg-type]


def choose(
    roots: Iterable[fx.Node],
    operands: Callable[[fx.Node], list[fx.Node]],
    load_cost: Callable[[fx.Node], float],
    work: Callable[[fx.Node], float],
) -> tuple[set[fx.Node], set[fx.Node]]:
    """Choose what to load and what to compute.

    Args:
        roots: what must be computed, as must what has an infinite load cost and is needed for it.
        operands: the operands of a node that are rows of the same space (others are there anyway).
        load_cost: cost of having a value loaded; infinite if it cannot be.
        work: cost of computing a node that may be loaded.

    Returns:
        (computed, loaded).
    """
    computed, needed = set(roots), set[fx.Node]()
    pending = list(computed)
    while pending:  # what must be computed, and what that needs
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
