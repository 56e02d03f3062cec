"""Give every value its placement.

    positions          [atoms, 3]
    index(positions, sender)   [edges, 3]
    sum(energies)      [] partial
    mul(energy, energy)        needs the whole energy: noted for `insert_all_reduces`

Every space-sized value holds the rank's own rows only, so all size arithmetic of the captured graph stays valid.
An operator without a rule that touches a distributed dimension runs whole on every rank (see `whole`); none is guessed.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import sympy
import torch
from torch import fx

from ...errors import UnsupportedOp
from ...ir import META, Dim, Input, Placed, Placement, Space, is_random, replace_graph
from ...ir.graphs import copy_node, graph_module
from ...ir.operators import facts
from ...rules import RULES, Context, Refused
from ...rules.base import named, unsupported
from ...rules.linear import passes_partial
from ...rules.pointwise import pointwise
from .whole import Whole, everywhere

aten = torch.ops.aten

WHOLE = "distcompile_whole"
"""Key in ``node.meta``: names of the operands that this node needs whole although they are partial."""

WHY = "distcompile_why"
"""Key in ``node.meta`` of the first operator of a stretch that runs whole: the reason that no rule divides it."""


def place(program: Placed) -> Placed:
    """Return `program` with a `Placement` in ``node.meta[META]`` of every node.

    Raises:
        UnsupportedOp: an operator can neither be divided nor run whole on every rank.
    """
    placer = _Placer(program)
    for node in program.graph.graph.nodes:
        placer.visit(node)
    return placer.finish()


class _Placer:
    """Writes the operators again, each for this rank's rows, or for all rows if no rule divides it."""

    def __init__(self, program: Placed) -> None:
        self.ctx, self.program = Context(program), program
        self.graph = fx.Graph()
        self.here: dict[fx.Node, fx.Node] = {}
        self.whole = Whole(self.ctx, self.graph, self.here)
        self.partial: set[fx.Node] = set()
        self.sharded: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self._return(node)
        elif node.op == "placeholder":
            self._place_input(node)
        elif node.target is operator.getitem and node.args[0] in self.whole.there:
            self.whole.there[node] = self.whole.run(node)
        else:
            try:
                new = self._divided(node)
            except Refused as refusal:
                self._run_whole(node, str(refusal))
                return
            if new is None:
                self._run_whole(node, "")
                return
            self.here[node] = new

    def _place_input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        tensor = isinstance(value, torch.Tensor)
        dims = tuple(_input_dim(self.ctx, n) for n in value.shape) if tensor else ()
        with self.graph.inserting_before(self.whole.anchor):
            new = copy_node(self.graph, node, self.here.__getitem__)
        self.here[node] = new
        self._note(new, Placement(dims, rule="input" if tensor else "size"))
        undivided = tensor and any(
            not dim and self.whole.counts_rows(n) for dim, n in zip(dims, value.shape, strict=True)
        )
        if sum(map(bool, dims)) > 1 or undivided:  # a value for every pair of rows, or for a part of them
            self.whole.of(node)
            del self.here[node]

    def _divided(self, node: fx.Node) -> fx.Node | None:
        """An operator of this rank's rows; None if none of its operands has such rows, but some have all rows."""
        new = copy_node(self.graph, node, self._operand)
        mixed = any(self._has_all_rows(n) for n in new.all_input_nodes)
        try:
            if mixed and not any(n in self.sharded for n in new.all_input_nodes):
                self.graph.erase_node(new)
                return None
            if mixed:
                self._check_mixed(node)
                self.whole.look_up_by_numbers(new)
            found = self._place(new, mixed)
            if mixed and self._has_all_rows(new):
                raise Refused("a value with all rows for each row")
        except Refused:
            self.graph.erase_node(new)
            raise
        self._note(new, found)
        return new

    def _operand(self, node: fx.Node) -> fx.Node:
        """The operand of an operator of this rank's rows: this rank's rows of it if it has any, else all rows."""
        if node not in self.here:
            mine = self.whole.own_rows(node)
            if mine is None:
                return self.whole.there[node]
            self.here[node] = mine
            self._note(mine, mine.meta[META])
        return self.here[node]

    def _has_all_rows(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        return any(self.whole.is_whole(n) for v in values if isinstance(v, torch.Tensor) for n in v.shape)

    def _check_mixed(self, node: fx.Node) -> None:
        """Refuse an operator that would take a size of all rows for one of this rank's rows."""
        sizes = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.SymInt)]
        row = facts(node)
        known = isinstance(node.meta["val"], torch.Tensor) and (row.pointwise or row.view or node.target in _MIXED)
        if not known or any(self.whole.counts_rows(n.meta["val"]) for n in sizes):
            raise Refused("an operator of a rank's own rows and of all rows")

    def _place(self, node: fx.Node, mixed: bool) -> Any:
        if node.op == "get_attr":
            value = getattr(self.program.graph, str(node.target))
            return Placement(((),) * value.dim(), rule="constant")
        if node.target is operator.getitem:
            whole = node.args[0].meta[META]  # type: ignore[union-attr]
            return whole[node.args[1]] if isinstance(whole, tuple) else whole  # type: ignore[index]
        found = self._by_rule(node, mixed)
        mine = [n for n in node.all_input_nodes if n in self.partial]
        if not mine:
            return found
        each = placements(found)
        summed = all(p.reduction == "sum" for n in mine for p in placements(n.meta[META]))
        linear = passes_partial(node, self.partial, self.sharded)
        if not summed or any(p.sharded for p in each) or not linear:
            node.meta[WHOLE] = tuple(n.name for n in mine)
            return found
        each = tuple(dataclasses.replace(p, partial=True) for p in each)
        return each if isinstance(found, tuple) else each[0]

    def _by_rule(self, node: fx.Node, mixed: bool) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor | list | tuple):
            return Placement(rule="size")
        rule = pointwise if facts(node).pointwise else RULES.get(node.target)
        touches = any(n in self.sharded for n in node.all_input_nodes) or _has_rows(self.ctx, value)
        if not touches:
            return everywhere(value, "replicated")
        if rule is None:
            raise Refused("there is no placement rule for it")
        found = named(rule(self.ctx, node), rule.__name__.rstrip("_"))
        if mixed:
            node.meta["val"] = self.whole.value(value, found.dims)
        return _checked(self.ctx, node, found)

    def _run_whole(self, node: fx.Node, why: str) -> None:
        """Run an operator on all rows, on every rank."""
        if is_random(node):
            raise self._unsupported(node, f"{why}, and it draws random numbers, of which every rank has others")
        try:
            new = self.whole.of(node) if node in self.whole.there else self.whole.run(node)
        except Refused as refusal:
            raise self._unsupported(node, f"{why}; {refusal}") from None
        partial = tuple(n.name for n in new.all_input_nodes if n in self.partial)
        if partial:
            new.meta[WHOLE] = partial
        if why:
            new.meta[WHY] = why
        self.whole.there[node] = new

    def _unsupported(self, node: fx.Node, reason: str) -> UnsupportedOp:
        given = [self.here.get(n) or self.whole.there[n] for n in node.all_input_nodes]
        tensors = [n for n in given if isinstance(n.meta.get("val"), torch.Tensor)]
        return unsupported(node, reason, [f"{n.name} {_show(self.ctx, n)}" for n in tensors])

    def _return(self, node: fx.Node) -> None:
        """Return the results: values of all rows where they exist, so that they need not be put together."""
        found = {n: self.whole.there.get(n) or self.here[n] for n in node.all_input_nodes}
        for result in found.values():
            _check_result(self.ctx, result)
        new = copy_node(self.graph, node, found.__getitem__)
        new.meta[META] = Placement()

    def _note(self, node: fx.Node, found: Any) -> None:
        node.meta[META] = found
        each = placements(found)
        if any(p.partial for p in each):
            self.partial.add(node)
        if any(p.sharded for p in each):
            self.sharded.add(node)

    def finish(self) -> Placed:
        self.graph.erase_node(self.whole.anchor)
        module = graph_module(self.program.graph, self.graph)
        if self.whole.spaces:
            module.graph.eliminate_dead_code()
        spaces = (*self.program.spaces, *self.whole.spaces.values())
        return replace_graph(self.program, module, inputs=self._inputs(), spaces=spaces)

    def _inputs(self) -> tuple[Input, ...]:
        """The inputs of the program, and the added inputs that are used."""
        used = {n.name for n in self.graph.nodes if n.op == "placeholder" and n.users}
        for node in [n for n in self.graph.nodes if n.op == "placeholder"]:
            if node.name not in used and node.name not in {i.name for i in self.program.inputs}:
                self.graph.erase_node(node)
        return (*self.program.inputs, *(i for i in self.whole.inputs[len(self.program.inputs) :] if i.name in used))


_MIXED = {
    aten.index.Tensor,
    aten.index_select.default,
    aten.embedding.default,
    aten.index_put.default,
    aten.index_add.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.sum.default,
    aten.sum.dim_IntList,
}
"""Operators, beside pointwise ones and views, whose rules tell rows of a rank from all rows."""


def _check_result(ctx: Context, node: fx.Node) -> None:
    """Results are put together row by row: each row of them must be of one length in all graphs, or a dimension."""
    for placement in placements(node.meta[META]):
        if any(isinstance(f, Space) and not f.sharded for dim in placement.dims for f in dim):
            raise unsupported(node, "a result with rows of varying length in one dimension", [_show(ctx, node)])


def placements(found: Any) -> tuple[Placement, ...]:
    """The placements of an operator's results, of one or of several."""
    return found if isinstance(found, tuple) else (found,)


def _input_dim(ctx: Context, size: Any) -> Dim:
    space = ctx.program.space_of(ctx.program.size(size))
    return (space,) if space is not None and space.sharded else ()


def _has_rows(ctx: Context, value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    symbols = {s.symbol for s in ctx.program.spaces if s.sharded}
    return any(
        symbols & set(getattr(ctx.program.size(n), "free_symbols", ()))
        for v in values
        if isinstance(v, torch.Tensor)
        for n in v.shape
    )


def _checked(ctx: Context, node: fx.Node, found: Any) -> Any:
    """Hold a rule's answer against the symbolic shape: both must say the same of every dimension."""
    values = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    for place, value in zip(found if isinstance(found, tuple) else (found,), values, strict=True):
        if not isinstance(value, torch.Tensor):
            continue
        for dim, n in zip(place.dims, value.shape, strict=True):
            size = ctx.program.size(n)
            product = size
            for factor in dim:
                product = product / (factor.symbol if isinstance(factor, Space) else factor)  # type: ignore[union-attr]
            symbols = {s.symbol for s in ctx.program.spaces if s.sharded}
            if dim and place.partial:
                raise Refused("a sum over some rows of values that have a row for each of others")
            if not dim and symbols & size.free_symbols and size not in symbols:
                number = size.xreplace({s.symbol: sympy.Symbol(s.name) for s in ctx.program.spaces if s.sharded})
                raise Refused(
                    f"the model makes a list of {number} rows, which are none of the graph's (pairs that it looks for "
                    "itself? give them to it with the graph, if it takes them)"
                )
            if (dim and sympy.cancel(product) != 1) or (not dim and symbols & size.free_symbols):
                raise Refused(f"its result of shape {tuple(value.shape)} was placed as {place.dims}")
    return found


def _show(ctx: Context, node: fx.Node) -> str:
    found = node.meta.get(META)
    if not isinstance(found, Placement):
        return "(several)"
    shape = ctx.program.shape(node)
    parts = ["*".join(str(f) for f in d) if d else str(n) for d, n in zip(found.dims, shape, strict=True)]
    return "[" + ", ".join(parts) + "]" + (" partial" if found.partial else "")
