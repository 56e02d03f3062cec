"""Sums that are added up in the end are added into one table.

    a = index_add(zeros, p, x)
    b = index_add(zeros, q, y)         =>    a = index_add(zeros, p, x)
    s = a + b                                s = index_add(a, q, y)

The gradient of features that several layers or both ends of an edge read arrives as a sum of such tables. One table
takes one halo reduction instead of many, and the memory of one. Sums go into it in the order in which they can be
made, so that none waits for another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from torch import fx

from ...ir import META, Placed, Placement, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import is_zero
from ...rules.indexing import accesses, reduction
from ...rules.levels import Work, is_simple, levels
from ..simplify.sums import replace_sum, roots_of_sums, summands


def merge_sums(program: Placed) -> Placed:
    """Return `program` with sums of scatters as one chain of scatters into one table."""
    module, nodes = copy_graph(program.graph)
    order = {space: i for i, space in enumerate(program.spaces)}
    when = {nodes[node]: _when(work, order) for node, work in levels(program).items()}
    for root in roots_of_sums(module.graph):
        _merge(root, when)
    return replace_graph(program, module)


def _when(work: Work, order: dict[Any, int]) -> tuple[int, int]:
    """The place of a scatter in the order of work: regions of one level run in the order of spaces."""
    return work.level, order[work.space] if work.space is not None else -1


def _merge(root: fx.Node, when: dict[fx.Node, tuple[int, int]]) -> None:
    tables: dict[Any, list[fx.Node]] = defaultdict(list)
    rest: list[fx.Node] = []
    for node, times in Counter(summands(root)).items():
        if times > 1:
            rest += [node] * times
        elif _is_table_of_sums(node) and node.meta[META].dims == root.meta[META].dims:
            tables[accesses(node)[0].dim].append(node)
        else:
            rest.append(node)
    if all(len(chain) < 2 for chain in tables.values()):
        return
    ends = [_chained(sorted(chain, key=when.__getitem__)) for chain in tables.values()]
    replace_sum(root, [*rest, *ends])


def _is_table_of_sums(node: fx.Node) -> bool:
    """True if a node only sums rows into zeros through one pointer, and nothing but this sum uses it."""
    if len(node.users) != 1 or not is_simple(node) or reduction(node) != "sum":
        return False
    (access,) = accesses(node)
    placement = node.meta[META]
    return isinstance(placement, Placement) and bool(placement.dims[access.dim]) and is_zero(access.table)


def _chained(chain: list[fx.Node]) -> fx.Node:
    """Let each scatter add to the result of the one before."""
    position = {node: i for i, node in enumerate(chain[0].graph.nodes)}
    last = chain[0]
    for node in chain[1:]:
        if position[node] < position[last]:
            last.append(node)
            position[node] = position[last]
        node.update_arg(0, last)
        last = node
    return last
