"""Tables of as many rows as the largest row number says.

    zeros(int(receiver.max()) + 1, 64)    =>    zeros(n_atoms, 64)

Such a table has a row for everything that anybody points at. The space that the index points into may have more rows;
nobody reads these, unless the model adds up the rows of the table, or returns them.
"""

from __future__ import annotations

import sympy
import torch
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ...ir import Split
from ...ir.operators import facts, operators
from ...rules.indexing import accesses

aten = torch.ops.aten

_MOVES = {aten.cat.default, aten.repeat.default, *operators(lambda f: f.reshape)}
"""Operators that may put rows behind rows."""


def solved(a: sympy.Expr, b: sympy.Expr) -> dict[sympy.Symbol, sympy.Expr] | None:
    """The value that a number computed from the graph must have for two sizes, one of which is made of it, to be equal.

    As a map from the number to the value; None if there is no such number.
    """
    for number in sorted((a - b).free_symbols, key=str):
        rest = (a - b).subs(number, 0)
        times = sympy.expand(a - b - rest) / number
        if symbol_is_type(number, SymT.UNBACKED_INT) and times in (1, -1):
            return {number: sympy.expand(-rest * times)}
    return None


def may_be_less(program: Split, graph: fx.Graph, merged: dict[sympy.Symbol, sympy.Expr]) -> frozenset[sympy.Symbol]:
    """Numbers that are the largest of a list, and give the length of tables that are used through pointers alone.

    Args:
        program: before `merged` was found.
        graph: of the program.
        merged: by symbol, the size that it was found to be.
    """
    numbers = {n for n in merged if symbol_is_type(n, SymT.UNBACKED_INT) and _is_largest(program, n)}
    return frozenset(n for n in numbers if _only_pointed_at(program, graph, n, merged))


def _is_largest(program: Split, number: sympy.Symbol) -> bool:
    position = dict(program.conditions).get(number)
    if position is None:
        return False
    (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
    node = output.args[0][position]  # type: ignore[index]
    while node.op == "call_function" and facts(node).reduces != "amax" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]  # casts, and the 1 that is added
    return facts(node).reduces == "amax"


def _only_pointed_at(
    program: Split, graph: fx.Graph, number: sympy.Symbol, merged: dict[sympy.Symbol, sympy.Expr]
) -> bool:
    """True if tables of so many rows, and the values that are made of them, are read through pointers only."""
    tables: dict[fx.Node, set[sympy.Expr]] = {}
    for node in graph.nodes:
        read = [n for n in node.all_input_nodes if n in tables]
        sizes = program.shape(node) if isinstance(node.meta.get("val"), torch.Tensor) else ()
        counted = {n.xreplace(merged) for n in sizes if number in n.free_symbols}
        counted |= {n.xreplace(merged) for n in sizes}.intersection(*[tables[n] for n in read]) if read else set()
        lengths = {n for table in read for n in program.shape(table)}
        moved = node.target in _MOVES and any(number in n.free_symbols and n not in lengths for n in sizes)
        if counted and (moved or node.op == "placeholder"):
            return False  # rows come behind more rows than there would be; or an input has this length by itself
        if counted:
            tables[node] = counted
        elif read and not any(a.kind == "gather" and a.table in read for a in accesses(node)):
            return False
    return True
