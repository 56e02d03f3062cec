"""Operators of the rows of a space, written for other rows: halo rows, or one row of each kind.

    x = embedding(table, species)     [atoms, 16]         x' = embedding(table, species')     [halo of atoms, 16]
    y = mm(x, w)                      [atoms, 64]    =>   y' = mm(x', w)                      [halo of atoms, 64]

An operator that is row-local does to any rows what it does to those of a rank. What it is given beside rows stays, and
the number of rows, wherever it counts them, becomes that of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from ...ir import META, Dim, Input, Placed, Placement, Space, is_random
from ...ir.graphs import copy_node
from ...ir.sizes import size_nodes
from ...ir.writer import described
from ...rules.levels import Work, is_size, tables_of


def new_symbol(program: Placed, name: str, hint: int) -> sympy.Symbol:
    """A symbol for the size of a new space; `hint` stands for it where an example's size is asked for."""
    env = program.captured.shape_env
    return env.create_symbol(hint, ConstantSource(name), DimDynamic.DYNAMIC)


def size_by_rows(program: Placed, node: fx.Node, space: Space) -> sympy.Expr | None:
    """A size, counted in rows of a space; None if it is none that other rows have, too."""
    value = node.meta["val"]
    expr = program.size(value) if isinstance(value, torch.SymInt) else sympy.Integer(0)
    if space.symbol not in expr.free_symbols:
        return expr
    number = next((i for i in program.inputs if i.name == node.name and i.kind == "number"), None)
    factor = sympy.cancel(expr / space.symbol)
    return None if number is not None or not factor.is_Integer else factor * space.symbol


def works_on_other_rows(program: Placed, node: fx.Node, work: Mapping[fx.Node, Work], space: Space) -> bool:
    """True if an operator is row-local over a space, reads no rows but its own, and its sizes are those of any rows."""
    found = work.get(node)
    if found is None or found.kind != "row" or found.space != space or is_random(node):
        return False
    if any(isinstance(p, Placement) and p.sharded for t in tables_of(node) for p in [t.meta.get(META)]):
        return False
    return all(size_by_rows(program, n, space) is not None for n in node.all_input_nodes if is_size(n))


class OtherRows:
    """Writes operators of one space's rows for other rows."""

    def __init__(self, program: Placed, graph: fx.Graph, space: Space, other: Space, number: fx.Node) -> None:
        """
        Args:
            program: knows the sizes of the rows.
            graph: the one that is rewritten.
            space: the rows that operators have.
            other: those that they get.
            number: the node that holds how many these are.
        """
        self._program, self._graph = program, graph
        self._space, self._other, self._number = space, other, number

    def copy(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The same operator on the other rows, after `node`; `operands` are those of its operands that have rows."""
        sizes = {n: self._size(node, n) for n in node.all_input_nodes if is_size(n)}
        with self._graph.inserting_after(node):
            new = copy_node(self._graph, node, lambda n: sizes.get(n) or operands.get(n, n))
        return self.like(new, node)

    def like(self, new: fx.Node, node: fx.Node) -> fx.Node:
        """Describe `new` as `node` is described, with the other rows in place of its own."""
        place, value = _mapped(node.meta[META], self._placed), _mapped(node.meta["val"], self._value)
        return described(new, like=node, value=value, place=place)

    def symint(self, expr: sympy.Expr) -> Any:
        """A size as the fake values of tensors have it."""
        env = self._program.captured.shape_env
        return int(expr) if expr.is_Integer else env.create_symintnode(expr, hint=None)

    def _size(self, node: fx.Node, size: fx.Node) -> fx.Node:
        """A size of `node`, counted in the other rows."""
        expr = size_by_rows(self._program, size, self._space)
        assert expr is not None
        if self._space.symbol not in expr.free_symbols:
            return size
        with self._graph.inserting_before(node):
            new: fx.Node = size_nodes(self._graph, self._counted(expr), lambda _: self._number)  # type: ignore[arg-type,return-value]
        new.meta.setdefault(META, Placement(rule="size"))
        return new

    def _counted(self, expr: sympy.Expr) -> sympy.Expr:
        return expr.xreplace({self._space.symbol: self._other.symbol})

    def _placed(self, place: Placement) -> Placement:
        return dataclasses.replace(place, dims=tuple(map(self._dim, place.dims)))

    def _dim(self, dim: Dim) -> Dim:
        if self._space not in dim:
            return dim
        return tuple(self._other if f == self._space else f for f in dim) if self._other.sharded else ()

    def _value(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = [self.symint(self._counted(self._program.size(n))) for n in value.shape]
        with value.fake_mode:  # type: ignore[attr-defined]
            return torch.empty(shape, dtype=value.dtype, device=value.device)


class Inputs:
    """Adds inputs to a program whose graph is rewritten."""

    def __init__(self, program: Placed, graph: fx.Graph) -> None:
        self._graph = graph
        self.all = list(program.inputs)
        self._last = [n for n in graph.nodes if n.op == "placeholder"][-1]

    def add(self, name: str, given: Input) -> fx.Node:
        """The placeholder of a further input, which is yet to be described."""
        with self._graph.inserting_after(self._last):
            new = self._graph.placeholder(name)
        new.target = new.name  # the name of the argument, made unique
        self._last = new
        self.all.append(dataclasses.replace(given, name=new.name))
        return new


def _mapped(value: Any, function: Any) -> Any:
    """A function of each of several values, or of one."""
    return type(value)(map(function, value)) if isinstance(value, list | tuple) else function(value)
