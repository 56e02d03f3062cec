"""A captured call: one graph of operators, and what has to hold for another call to be the same graph."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

from .tree import Leaf, Tree

Precision = tuple[tuple[str, str], ...]
"""Devices on which autocast is on, with the type that it casts to."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of a size with a number of at most 2, such as 0 or 1.

    Torch answers many of these without a guard, since it takes every size for 2 or more.
    """

    size: sympy.Expr
    name: str
    """The comparison, as a method of integers: ``__eq__``, ``__lt__``, ..."""
    number: int
    outcome: bool

    def holds(self, size: int) -> bool:
        """True if another size compares as the example's did."""
        return bool(getattr(size, self.name)(self.number)) is self.outcome


@dataclasses.dataclass(frozen=True)
class Origins:
    """The inputs and parameters that a result is computed from, without a detach on the way."""

    leaves: frozenset[int]
    parameters: tuple[nn.Parameter, ...]

    def carry(self, leaves: Sequence[Leaf]) -> bool:
        """True if any of them requires gradients in a call with these inputs.

        A call that lacks some of them is refused later, where all ranks hear of it.
        """
        given = (leaves[i].tensor for i in self.leaves if i < len(leaves))
        return any(t.requires_grad for t in given) or any(p.requires_grad for p in self.parameters)


@dataclasses.dataclass(frozen=True)
class Captured:
    """One call of a model as a graph, and what has to hold for another call to be the same graph."""

    graph_module: fx.GraphModule
    """One placeholder per input tensor; returns the flat list of the result's tensors."""
    leaves: tuple[Leaf, ...]
    """The example's tensors with their paths (for messages); their sizes are hints only."""
    sizes: tuple[tuple[sympy.Expr, ...], ...]
    """Per leaf, its shape in the symbols of `shape_env`."""
    numbers: tuple[tuple[str, int | float | bool], ...]
    """Python numbers of the example: constants of this graph."""
    texts: tuple[tuple[str, str], ...]
    """Strings of the example that the model read."""
    result: Tree
    """The model's result with its tensors taken out."""
    shape_env: ShapeEnv
    checks: tuple[sympy.Basic, ...] = ()
    """The conditions on sizes and values that the model (not a pass) tested, and that the example meets. A graph that
    meets them all has the same program."""
    comparisons: tuple[Comparison, ...] = ()
    """Comparisons of sizes with numbers of at most 2, a further part of these conditions."""
    conditions: tuple[sympy.Symbol, ...] = ()
    """Numbers that the model branched on, or took for sizes. The graph returns the tensors that hold them, after the
    tensors of the result."""
    differentiates: bool = False
    """True if the call takes gradients itself (forces)."""
    training: bool = False
    """True if the model was in training mode."""
    origins: tuple[Origins | None, ...] = ()
    """For each result, the inputs and parameters to which it carries gradients in that mode; None if to none."""
    precision: Precision = ()
    """The autocast settings of the capture. Under other settings the call is another program."""
    loops: tuple[str, ...] = ()
    """Lines of Python where a number of rows became a plain number, that of the example."""
    over_rows: tuple[str, ...] = ()
    """Lines that map a function over rows by ``torch.func``, which may take other rows for fixed."""

    def size(self, value: Any) -> sympy.Expr:
        """The expression of a size, with one symbol for equal sizes.

        Sizes that the example's branches took for equal are equal here.
        """
        return self._resolve(self.raw_size(value), self._assumed)

    def raw_size(self, value: Any) -> sympy.Expr:
        """The expression of a size without the answers that only the example gave."""
        expr = value.node.expr if isinstance(value, torch.SymInt) else sympy.sympify(value)
        return self.shape_env.replace(expr)

    def hint(self, size: sympy.Expr) -> int:
        """The size in the example; the largest size of any input if it is not known."""
        known = self._known(size)
        return known if known is not None else max((n for leaf in self.leaves for n in leaf.tensor.shape), default=1)

    def _known(self, size: sympy.Expr) -> int | None:
        """The size in the example; None if it is not known, since values of wide tensors are not kept."""
        env = self.shape_env
        found = size.xreplace(env.real_tensor_prop_unbacked_vals).xreplace(env.backed_var_to_val)
        return int(found) if found.is_Integer else None

    def _resolve(self, expr: sympy.Expr, assumed: Mapping[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
        while expr.free_symbols & assumed.keys():
            expr = self.shape_env.replace(expr.xreplace(assumed))
        return expr

    @functools.cached_property
    def _assumed(self) -> dict[sympy.Symbol, sympy.Expr]:
        """Data-dependent sizes that the model found equal to others on the example, and these others."""
        assumed: dict[sympy.Symbol, sympy.Expr] = {}
        for check in self.checks:
            if not isinstance(check, sympy.Eq):
                continue
            # In terms of the equalities found before, so that no two sizes stand for each other.
            lhs, rhs = (self._resolve(self.shape_env.replace(side), assumed) for side in check.args)
            for size, other in ((lhs, rhs), (rhs, lhs)):
                is_free = size.is_Symbol and symbol_is_type(size, SymT.UNBACKED_INT) and size not in other.free_symbols
                if is_free:
                    assumed[size] = other
                    break
            else:
                assumed |= self._same_factors(lhs, rhs)
        return assumed

    def _same_factors(self, one: sympy.Expr, other: sympy.Expr) -> dict[sympy.Symbol, sympy.Expr]:
        """Match the sizes of two matrices with equally many elements: sizes that are equal in the example are the same.

        Empty if the example's sizes are not known, or do not tell the matrices' sizes apart.
        """
        sides = [{self._known(s): s for s in side.args} for side in (one, other) if side.is_Mul]
        if len(sides) < 2 or not all(s.is_Symbol for s in (*one.args, *other.args)) or any(None in s for s in sides):
            return {}
        both = sides[0].keys() & sides[1].keys()
        told_apart = all(len(side) == len(both) for side in (*sides, one.args, other.args))
        return {sides[0][n]: sides[1][n] for n in both if sides[0][n] != sides[1][n]} if told_apart else {}
