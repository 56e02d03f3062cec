"""Operators that no rule divides run whole on every rank.

    a                [edges, 8]             a                            [edges, 8]
    b = cumsum(a, 0)                  =>    w = gather_rows(a)           [all edges, 8]
    c = mul(b, x)                           v = cumsum(w, 0)             [all edges, 8]
                                            b = index_select(v, 0, own)  [edges, 8]
                                            c = mul(b, x)

The number of all rows is a size of its own, that of a space which every rank holds whole. So the rules that divide the
rest of the program take such values for what they are: tables that are the same on every rank. A value with a row for
each pair of rows stays whole until something is made of it that has a row for each row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from ...ir import META, WHOLE_RULE, Dim, Input, InputKind, Placement, Space, all_rows_name
from ...ir.graphs import anchor, copy_node
from ...ir.operators import facts
from ...ir.writer import described, write
from ...rules.base import Context, Refused
from ...rules.indexing import accesses
from ...rules.levels import is_size
from ...runtime.operators.whole import gather_rows

aten = torch.ops.aten


class Whole:
    """Values of all rows, on every rank. Each is made when it is first needed."""

    def __init__(self, ctx: Context, graph: fx.Graph, here: dict[fx.Node, fx.Node]) -> None:
        """
        Args:
            ctx: of the program that is placed.
            graph: the one that is written.
            here: by node of the program, its value on a rank; of its own rows, or the same on every rank.
        """
        self.ctx, self.program, self.graph, self.here = ctx, ctx.program, graph, here
        self.inputs = list(ctx.program.inputs)
        self.spaces: dict[Space, Space] = {}
        """For each space, the space of all its rows."""
        self.there: dict[fx.Node, fx.Node] = {}
        """For each node of the program, its value of all rows."""
        self.anchor = graph.create_node("call_function", anchor)
        self._given = {i.name: i for i in self.inputs}
        self._added: dict[tuple[str, InputKind], fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """A value of all rows; rows that are divided come from all ranks."""
        if node not in self.there:
            self.there[node] = self._made(node)
        return self.there[node]

    def _made(self, node: fx.Node) -> fx.Node:
        if is_size(node):
            return self._size(node)
        mine = self.here[node]
        if not self.has_rows(node):
            return mine
        if node.op == "placeholder":
            given = self._given[node.name]
            return self._input(f"all_{node.name}", dataclasses.replace(given, kind="rows", space=None), node)
        return self.run(node) if _is_given(node) else self._gathered(mine)

    def has_rows(self, node: fx.Node) -> bool:
        """True if a value of the program has rows that are divided."""
        values = node.meta.get("val")
        each = values if isinstance(values, list | tuple) else [values]
        return any(self.counts_rows(n) for v in each if isinstance(v, Tensor) for n in v.shape)

    def counts_rows(self, size: Any) -> bool:
        """True if a size is made of the number of rows that are divided."""
        return self.counted(size) != self.program.size(size)

    def run(self, node: fx.Node) -> fx.Node:
        """The same operator on all rows."""
        value = self.value(node.meta["val"])
        return described(copy_node(self.graph, node, self.of), value=value, place=everywhere(value, WHOLE_RULE))

    def own_rows(self, node: fx.Node) -> fx.Node | None:
        """This rank's rows of a value of all rows; None if its dimensions do not count such rows."""
        if not isinstance(node.meta["val"], Tensor):
            return None
        try:
            dims = tuple(self.ctx.dim_of(n) for n in node.meta["val"].shape)
        except Refused:
            return None
        rows = [i for i, dim in enumerate(dims) if dim]
        if not rows:
            return self.there[node]
        (at, *more) = rows
        space = dims[at][0]
        if more or len(dims[at]) > 1 or not isinstance(space, Space):
            return None
        own = self._plan(space, "owned")
        if own.meta["val"] is None:
            value = node.meta["val"]
            with value.fake_mode:  # type: ignore[attr-defined]
                own.meta["val"] = torch.empty([value.shape[at]], dtype=torch.int64, device=value.device)
        place = Placement(dims, rule="own rows")
        return write(self.graph, aten.index_select.default, (self.there[node], at, own), like=node, place=place)

    def look_up_by_numbers(self, node: fx.Node) -> None:
        """Let an operator of this rank's rows look up tables of all rows by the numbers that rows have in the graph."""
        for access in accesses(node):
            place = access.table.meta[META]
            if not place.dims[access.dim] and self.is_whole(access.table.meta["val"].shape[access.dim]):
                node.replace_input_with(access.index, self._numbers(access.index))

    def is_whole(self, size: Any) -> bool:
        """True if a size is that of all rows of a space."""
        return bool(self.program.size(size).free_symbols & {s.symbol for s in self.spaces.values()})

    def _numbers(self, index: fx.Node) -> fx.Node:
        """An index of this rank's rows into all rows: a pointer holds numbers of the rank's own."""
        if index.op == "placeholder":
            given = self._given.get(index.name)
            if given is None or given.kind != "pointer":
                return index
            return self._input(
                f"{index.name}_numbers", dataclasses.replace(given, kind="rows", space=None), index, True
            )
        if not facts(index).shows_all:
            return index
        source: Any = index.args[0]
        instead = self._numbers(source)
        return index if instead is source else copy_node(self.graph, index, lambda n: instead if n is source else n)

    # -- sizes --------------------------------------------------------------------------------------------------------

    def space(self, of: Space) -> Space:
        """The space of all rows of a space."""
        if of not in self.spaces:
            env, name = self.program.captured.shape_env, all_rows_name(of.name)
            symbol = env.create_symbol(1009, ConstantSource(name), DimDynamic.DYNAMIC)
            self.spaces[of] = Space(name, symbol, sharded=False, all_of=of)
        return self.spaces[of]

    def counted(self, size: Any) -> sympy.Expr:
        """A size of a rank's rows, as one of all rows."""
        expr = self.program.size(size)
        divided = (s for s in self.program.spaces if s.sharded and s.symbol in expr.free_symbols)
        return expr.xreplace({s.symbol: self.space(s).symbol for s in divided})

    def value(self, value: Any, dims: tuple[Dim, ...] | None = None) -> Any:
        """The fake value of all rows. If `dims` are given, only dimensions that are not divided count all rows."""
        if isinstance(value, list | tuple):
            return type(value)(self.value(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        shape = [n if dims and dims[i] else self._symint(n) for i, n in enumerate(value.shape)]
        with value.fake_mode:  # type: ignore[attr-defined]
            return torch.empty(shape, dtype=value.dtype, device=value.device)

    def _symint(self, size: Any) -> Any:
        if isinstance(size, int):
            return size
        expr = self.counted(size)
        return int(expr) if expr.is_Integer else self.program.captured.shape_env.create_symintnode(expr, hint=None)

    def _size(self, node: fx.Node) -> fx.Node:
        """A size, counted in all rows; a number stays as it is."""
        mine = self.here[node]
        if not isinstance(node.meta["val"], torch.SymInt):
            return mine
        expr = self.counted(node.meta["val"])
        if expr == self.program.size(node.meta["val"]):
            return mine
        if node.op != "placeholder":
            size = self._symint(node.meta["val"])
            return described(copy_node(self.graph, node, self.of), value=size, place=Placement(rule="size"))
        if self._given[node.name].kind == "number":
            return mine
        space = next(s for s in self.spaces.values() if s.symbol == expr)
        new = self._input(f"n_{space}".replace(" ", "_"), Input("", "size", space=space), node)
        return described(new, value=self._symint(node.meta["val"]), place=Placement(rule="size"))

    # -- rows of all ranks --------------------------------------------------------------------------------------------

    def _gathered(self, mine: fx.Node) -> fx.Node:
        """The rows of all ranks."""
        ((at, dim),) = [(i, dim) for i, dim in enumerate(mine.meta[META].dims) if dim]
        (position,) = [i for i, f in enumerate(dim) if isinstance(f, Space) and f.sharded]
        others = [math.prod(part) for part in (dim[:position], dim[position + 1 :]) if _are_numbers(part)]
        if len(others) < 2:
            raise Refused("rows of varying length in one dimension, in a stretch that would have to run whole")
        plan = self._plan(dim[position], "order"), self._plan(dim[position], "counts")
        value = self.value(mine.meta["val"])
        args = (mine, *plan, at, *(others if others != [1, 1] else ()))
        return write(self.graph, gather_rows, args, like=mine, value=value, place=everywhere(value, "gather"))

    def _plan(self, space: Space, kind: InputKind) -> fx.Node:
        """The input that tells the rows of a space that each rank owns."""
        if (space.name, kind) not in self._added:
            new = self._placeholder(f"{space.name}_{kind}".replace(" ", "_"), Input("", kind, space=space))
            dims = ((space,),) if kind == "owned" else ((),)
            self._added[space.name, kind] = described(new, value=None, place=Placement(dims, rule="plan"))
        return self._added[space.name, kind]

    def _input(self, name: str, given: Input, like: fx.Node, rows: bool = False) -> fx.Node:
        """An input with the whole graph's values; with `rows`, with this rank's rows of them."""
        new = described(self._placeholder(name, given), like=like)
        if rows:
            return new
        value = self.value(like.meta["val"])
        return described(new, value=value, place=everywhere(value, "input"))

    def _placeholder(self, name: str, given: Input) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            new = self.graph.placeholder(name)
        new.target = new.name
        self.inputs.append(dataclasses.replace(given, name=new.name))
        return new


def _are_numbers(factors: Dim) -> bool:
    return all(isinstance(f, int) for f in factors)


def everywhere(value: Any, rule: str) -> Any:
    """The placement of a value that is the same on every rank."""
    if isinstance(value, list | tuple):
        return tuple(everywhere(v, rule) for v in value)
    return Placement(((),) * (value.dim() if isinstance(value, Tensor) else 0), rule=rule)


def _is_given(node: fx.Node) -> bool:
    """True if a value is the graph's own, or a constant, perhaps through views: no rank needs others for it."""
    if node.op == "placeholder" or facts(node).fill is not None:
        return True
    return facts(node).shows_all and _is_given(node.args[0])  # type: ignore[arg-type]
