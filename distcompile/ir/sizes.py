"""Sizes as nodes of a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Max, Min, PowByNatural

from .writer import write

SMALLEST_SPACE = 4
"""Dimensions shorter than this are never index spaces: vectors, cells and counts of graphs have 1 to 3 rows."""

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    sympy.Mul: operator.mul,
    sympy.Add: operator.add,
    FloorDiv: operator.floordiv,
    sympy.Pow: operator.pow,
    PowByNatural: operator.pow,
    Min: torch.sym_min,
    Max: torch.sym_max,
}


def as_traced(size: Any) -> sympy.Expr:
    """A size as it was first named, before branches of the example fixed it or found it equal to another."""
    return size.node._expr if isinstance(size, torch.SymInt) else sympy.sympify(size)


def size_nodes(graph: fx.Graph, expr: sympy.Expr, leaf: Callable[[sympy.Symbol], fx.Node | None]) -> Any:
    """Nodes that compute the size `expr`, at the graph's insertion point; None if that cannot be written.

    Args:
        graph: where to add nodes.
        expr: sums, products, quotients, powers and extremes of symbols and integers.
        leaf: the node that holds the value of a symbol, or None if there is none.
    """
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        return leaf(expr)
    function = _FUNCTIONS.get(expr.func)
    parts = [size_nodes(graph, part, leaf) for part in expr.args]
    if function is None or any(part is None for part in parts):
        return None
    result, *rest = parts
    for part in rest:
        values = [a.meta.get("val") if isinstance(a, fx.Node) else a for a in (result, part)]
        result = write(graph, function, (result, part), value=None if None in values else function(*values))
    return result
