"""Compute what depends on the graph's integers alone once for each kind of row, and look it up.

    e = embedding(table, species)      [atoms, 64]          e = embedding(table, species')     [kinds of atoms, 64]
    w = mm(e, u)                       [atoms, 4096]   =>   w = mm(e, u)                       [kinds of atoms, 4096]
    y = mul(w, x)                      [atoms, 4096]        y = mul(index_select(w, 0, kind), x)     [atoms, 4096]

Of most integers of a graph there are few: thousands of atoms are of two species. Rows with equal integers are of one
kind. Kinds are found, and counted, in the index program, so nothing is assumed of them: if all rows differ there are as
many kinds as rows, and what is lost is a lookup each. Every rank is given the whole graph, so it has the rows of all
kinds, and no message is needed. A minimum cut chooses what is looked up: results of products, hardly ever of what is
done with species element by element.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from ...ir import META, Input, Placed, Placement, Space, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import facts
from ...ir.writer import described, write
from ...rules.cost import load_per_row, work_per_row
from ...rules.levels import Rows, levels, rows_of
from ...runtime.operators.kinds import kinds
from .other_rows import Inputs, OtherRows, new_symbol, works_on_other_rows
from .place import WHOLE, placements
from .store_or_recompute import choose

aten = torch.ops.aten

LOOKUP = 3.0
"""The cost of looking a value up, in loads of it: it is read from a table, and has to be worth a pass of its own."""

FEW = 8
"""A guess of the number of kinds, for predictions alone."""


def once_per_kind(program: Placed) -> Placed:
    """Return `program` with values of the graph's integers computed for each kind of row, where that is less work."""
    for space in program.spaces:
        if space.sharded and not space.blocks:
            program = _in_space(program, space)
    return program


def _in_space(program: Placed, space: Space) -> Placed:
    module, nodes = copy_graph(program.graph)
    work = {nodes[node]: found for node, found in levels(program).items()}
    made_of = _made_of_integers(program, module.graph, work, space)
    by_integers: dict[frozenset[fx.Node], list[fx.Node]] = {}
    for node in _looked_up(program, module.graph, space, made_of):
        by_integers.setdefault(made_of[node], []).append(node)
    if not by_integers:
        return program
    rewriter = _Rewriter(program, module, space, made_of)
    for integers, wanted in by_integers.items():
        rewriter.look_up(sorted(integers, key=rewriter.order.__getitem__), wanted)
    return rewriter.finish()


def _made_of_integers(
    program: Placed, graph: fx.Graph, work: Mapping[fx.Node, Any], space: Space
) -> dict[fx.Node, frozenset[fx.Node]]:
    """Values of which each row is made of the same row of the graph's integers, and which inputs these are."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    (results,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
    sources: Any = results.args[0]
    given = {i.name for i in program.inputs if i.kind == "rows" and not _counts_rows(sources[i.source])}
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.name in given and rows_of(node) == Rows(space, 0) and _holds_integers(program, node):
                found[node] = frozenset([node])
        elif works_on_other_rows(program, node, work, space) and WHOLE not in node.meta:
            operands = [n for n in node.all_input_nodes if META in n.meta]
            with_rows = [n for n in operands if rows_of(n) is not None]
            is_partial = any(p.partial for n in (node, *operands) for p in placements(n.meta[META]))
            if not is_partial and all(n in found for n in with_rows):
                found[node] = frozenset().union(*(found[n] for n in with_rows))
    return found


def _holds_integers(program: Placed, node: fx.Node) -> bool:
    """True if an input has integers, or truth values, as many for each row."""
    value = node.meta["val"]
    is_integral = not (value.is_floating_point() or value.is_complex())
    return is_integral and all(size.is_Integer for size in program.shape(node)[1:])


def _counts_rows(result: fx.Node) -> bool:
    """True if a result of the index program is made of row numbers, or of a grid's: all of its rows differ."""
    pending, seen = [result], {result}
    while pending:
        node = pending.pop()
        value: Any = node.meta.get("val")
        if facts(node).progression is not None and not isinstance(value.shape[0], int):
            return True
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    return False


def _looked_up(
    program: Placed, graph: fx.Graph, space: Space, made_of: Mapping[fx.Node, Collection[fx.Node]]
) -> list[fx.Node]:
    """The values that are looked up, in order. Others that rows are made of are computed for each row."""

    def operands(node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if n in made_of]

    def load(node: fx.Node) -> float:
        if node.op == "placeholder":
            return 0.0
        place = node.meta[META]
        is_plain = isinstance(place, Placement) and (space,) in place.dims and made_of[node]
        return LOOKUP * load_per_row(program, node) if is_plain else float("inf")

    def effort(node: fx.Node) -> float:
        return 0.0 if node.op == "placeholder" else work_per_row(program, node)

    roots = [n for n in graph.nodes if n not in made_of and operands(n)]
    _, loaded = choose(roots, operands, load, effort)
    return [n for n in graph.nodes if n in loaded and n.op != "placeholder"]


class _Rewriter:
    """Writes the operators on kinds, and the lookups."""

    def __init__(self, program: Placed, module: fx.GraphModule, space: Space, made_of: Collection[fx.Node]) -> None:
        self.program, self.module, self.space, self.made_of = program, module, space, made_of
        self.graph = module.graph
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.inputs = Inputs(program, self.graph)
        self.spaces = list(program.spaces)
        self.index_program, _ = copy_graph(program.index_program)
        (self.results,) = [n for n in self.index_program.graph.nodes if n.op == "output"]

    def look_up(self, integers: list[fx.Node], wanted: list[fx.Node]) -> None:
        """Compute values that are made of these integers for each kind of them, and look them up."""
        name = f"kinds of {self.space}"
        taken = sum(s.name.startswith(name) for s in self.spaces)
        symbol = new_symbol(self.program, f"{name} {taken}".replace(" ", "_"), FEW)
        kind_space = Space(f"{name} {taken + 1}" if taken else name, symbol, sharded=False)
        self.spaces.append(kind_space)
        number = self.inputs.add(f"n_{kind_space}".replace(" ", "_"), Input("", "size", space=kind_space))
        other = OtherRows(self.program, self.graph, self.space, kind_space, number)
        described(number, value=other.symint(symbol), place=Placement(rule="size"))
        there, kind = self._found(integers, other, number)
        for node in self._needed(wanted):
            there[node] = other.copy(node, there)
        for node in wanted:
            at = node.meta[META].dims.index((self.space,))
            with self.graph.inserting_after(there[node]):
                found = write(self.graph, aten.index_select.default, (there[node], at, kind), like=node)
            node.replace_all_uses_with(found)
        if not number.users:
            self.graph.erase_node(number)
            self.inputs.all = [i for i in self.inputs.all if i.name != number.name]

    def _found(
        self, integers: list[fx.Node], other: OtherRows, number: fx.Node
    ) -> tuple[dict[fx.Node, fx.Node], fx.Node]:
        """The integers of each kind, and the kind of each row: further inputs, found in the index program."""
        given = {i.name: i for i in self.inputs.all}
        outputs: list[Any] = list(self.results.args[0])  # type: ignore[arg-type]
        columns = [outputs[given[n.name].source] for n in integers]
        values = [n.meta["val"] for n in integers]
        with values[0].fake_mode:
            kind_of, number_of = (
                torch.empty([n], dtype=torch.int64, device=values[0].device)
                for n in (values[0].shape[0], number.meta["val"])
            )
        label = ", ".join(given[n.name].label for n in integers)
        kind = self.inputs.add(f"kind_of_{self.space}", Input("", "rows", source=len(outputs), label=label))
        described(kind, value=kind_of, place=Placement(((self.space,),), rule="input"))
        there: dict[fx.Node, fx.Node] = {}
        with self.index_program.graph.inserting_before(self.results):
            graph = self.index_program.graph
            found = write(graph, kinds, (columns,), value=(number_of, kind_of))
            example = write(graph, operator.getitem, (found, 0), value=number_of)
            outputs.append(write(graph, operator.getitem, (found, 1), value=kind_of))
            for node, column in zip(integers, columns, strict=True):
                source = Input("", "rows", source=len(outputs), label=given[node.name].label)
                there[node] = other.like(self.inputs.add(f"{node.name}_of_kinds", source), node)
                value = there[node].meta["val"]
                outputs.append(write(graph, aten.index_select.default, (column, 0, example), value=value))
        self.results.args = (tuple(outputs),)
        return there, kind

    def _needed(self, wanted: list[fx.Node]) -> list[fx.Node]:
        """The operators that values are made by, in order."""
        needed, pending = set(wanted), list(wanted)
        while pending:
            new = {n for n in pending.pop().all_input_nodes if n in self.made_of and n.op != "placeholder"} - needed
            needed |= new
            pending += new
        return sorted(needed, key=self.order.__getitem__)

    def finish(self) -> Placed:
        self.module.graph.eliminate_dead_code()
        changed = {"inputs": tuple(self.inputs.all), "spaces": tuple(self.spaces)}
        self.index_program.graph.lint()
        self.index_program.recompile()
        return replace_graph(self.program, self.module, index_program=self.index_program, **changed)
