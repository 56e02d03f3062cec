"""Lists that the model joins are index spaces, too.

    cat([edge_index, edge_index.flip(0)], 1): [2, 2*s7]      =>  edges_edges: rows of edges, then of edges
    cat([edge_index, arange(n).expand(2, n)], 1): [2, s7+s4] =>  edges_atoms: rows of edges, then of atoms

The rows of a joined list live where the rows that were joined live. So `cat` of a rank's rows gives the rank's rows of
the list, and sizes of the list are sums of sizes on every rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from ...ir import Space, Split
from ...ir.lengths import multiples

aten = torch.ops.aten


def joined_spaces(
    program: Split, graph: fx.Graph, spaces: Iterable[Space], targets: Iterable[sympy.Expr]
) -> tuple[Space, ...]:
    """Spaces of lists of rows of `spaces`: lists that are given, joined from different spaces, or pointed into.

    Args:
        program: a program with an index program.
        graph: its graph.
        spaces: what may be joined.
        targets: the sizes that pointers run over.
    """
    by_symbol = {s.symbol: s for s in spaces if s.sharded}
    joins = [join for g in (graph, program.index_program.graph) for n in g.nodes for join in _join(program, n)]
    given = [size for n in graph.nodes if n.op == "placeholder" for size in _shape(program, n)]
    mixed = [size for size, _ in joins if len(size.free_symbols) > 1]
    found: dict[sympy.Expr, Space] = {}
    for size in (*given, *targets, *mixed):
        parts = None if size.is_Symbol else multiples(size)
        if size not in found and parts is not None and parts.keys() <= by_symbol.keys():
            blocks = tuple(by_symbol[symbol] for symbol in _order(size, joins) or _any_order(parts, by_symbol))
            found[size] = Space("_".join(b.name for b in blocks), size, blocks=blocks)
    return tuple(found.values())


Join = tuple[sympy.Expr, tuple[sympy.Expr, ...]]
"""The length of a list, and the lengths of the lists that it was joined from."""


def _join(program: Split, node: fx.Node) -> list[Join]:
    if node.target is not aten.cat.default:
        return []
    given: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    parts = [shape for part in given if (shape := _shape(program, part)) != (0,)]  # cat ignores empty lists
    return [(_shape(program, node)[dim], tuple(shape[dim] for shape in parts))]


def _shape(program: Split, node: fx.Node) -> tuple[sympy.Expr, ...]:
    return program.shape(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()


def _order(size: sympy.Expr, joins: list[Join]) -> list[sympy.Symbol] | None:
    """The kinds of rows of a list, in the order in which the model joins them; None if it is joined elsewhere."""
    if size.is_Symbol:
        return [size]
    parts = multiples(size)
    if parts is not None and len(parts) == 1:
        return [symbol for symbol, n in parts.items() for _ in range(n)]
    for length, lengths in joins:
        orders = [_order(part, joins) for part in lengths] if length == size and size not in lengths else [None]
        if None not in orders:
            return [symbol for order in orders for symbol in order or ()]
    return None


def _any_order(parts: Mapping[sympy.Symbol, int], by_symbol: Mapping[sympy.Expr, Space]) -> list[sympy.Symbol]:
    return [symbol for symbol in by_symbol for _ in range(parts.get(symbol, 0))]
