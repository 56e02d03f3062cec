"""The form of a placement rule, and the registry of all rules.

A rule says how the result of one operator is divided among ranks, given how its operands are. Operands are
*row-owned*: a dimension over a sharded space holds the rank's own rows. A rule returns the result's placement, or
raises `Refused` where an answer would be a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
from torch import fx

from ..errors import UnsupportedOp
from ..ir import Dim, Factor, Placed, Placement, Space, placement
from ..ir.user_code import user_line

Rule = Callable[["Context", fx.Node], Placement | tuple[Placement, ...]]

RULES: dict[Any, Rule] = {}


class Refused(Exception):  # noqa: N818  caught by the place pass, never seen by a user
    """A rule does not cover this use of its operator; the message says what it does not cover."""


class Context:
    """The questions that rules may ask about operands."""

    def __init__(self, program: Placed) -> None:
        self.program = program

    def of(self, node: Any) -> Placement:
        """Placement of an operand; a Python number or None is the same on every rank."""
        if not isinstance(node, fx.Node):
            return Placement()
        found = placement(node)
        assert isinstance(found, Placement)
        return found

    def dims(self, node: Any) -> tuple[Dim, ...]:
        """One `Dim` per dimension of an operand."""
        return self.of(node).dims if isinstance(node, fx.Node) else ()

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The shape of an operand in the symbols of the spaces."""
        return self.program.shape(node)

    def points_at(self, index: fx.Node, space: Space) -> bool:
        """True if an index operand is a view of a pointer at rows of a space."""
        while index.op == "call_function":
            index = index.args[0]  # type: ignore[assignment]
        return any(p.name == index.name and p.target == space for p in self.program.pointers)

    def dim_of(self, size: Any) -> Dim:
        """The dimension that a freshly created tensor of this size has."""
        expr = self.program.size(size)
        space = self.program.space_of(expr)
        if space is not None:
            return (space,) if space.sharded else ()
        symbols = [s for s in self.program.spaces if s.sharded and s.symbol in expr.free_symbols]
        if not symbols:
            return ()
        (first, *rest) = symbols
        factor = sympy.cancel(expr / first.symbol)
        times = None if rest or factor.as_numer_denom()[1] != 1 else self.whole(factor)
        if times is None:
            raise Refused(f"a dimension of size {expr} mixes index spaces")
        return (first, times)

    def whole(self, size: sympy.Expr) -> Factor | None:
        """A dimension that every rank has whole: of fixed length, or of a length of each graph (columns of a matrix).

        None if it is made of the size of a divided space.
        """
        if size.is_Integer:
            return int(size)
        space = self.program.space_of(size)
        if space is not None:
            return space
        if any(s.sharded and s.symbol.free_symbols & size.free_symbols for s in self.program.row_spaces):
            return None
        return Space(str(size), size, sharded=False)  # such as one column more than the neighbours


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(function: Rule) -> Rule:
        for target in targets:
            assert target not in RULES, f"two rules for {target}"
            RULES[target] = function
        return function

    return register


def named(placement: Placement | tuple[Placement, ...], name: str) -> Any:
    """Note the name of the rule that set a placement."""
    if isinstance(placement, tuple):
        return tuple(named(p, name) for p in placement)
    return dataclasses.replace(placement, rule=name)


def arguments(node: fx.Node) -> Any:
    """The positional arguments of an operator, whose types its schema guarantees."""
    return node.args


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """One argument of an operator, given by position or by name or not at all."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def rank(node: fx.Node) -> int:
    """Number of dimensions of a tensor node."""
    return len(node.meta["val"].shape)


def wrap(dim: int, node: fx.Node) -> int:
    """A dimension, counted from the front."""
    return dim % max(rank(node), 1)


def one_row_dimension(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """Refuse a value with a row for every pair of rows: a rank has its own rows, not every pair that they are in."""
    if sum(bool(dim) for dim in dims) > 1:
        raise Refused("every row of one space meets every row of another")
    return tuple(dims)


def unsupported(node: fx.Node, reason: str, placements: Iterable[str]) -> UnsupportedOp:
    """The error for an operator that touches a distributed dimension without a rule that covers it."""
    return UnsupportedOp(
        f"distcompile cannot distribute {node.target}: {reason}.\n"
        f"  operands: {', '.join(placements)}\n"
        f"  {user_line(node)}\n"
        "Write it with operators that act on each row alone, gathers and scatters, or register a placement rule "
        "for it with distcompile.rules.rule."
    )
