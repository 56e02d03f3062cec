"""The choice of the values that are sent, and of those that are computed on halo rows.

    species ── embedding ── mm ── exchange          fetch the result of `mm`, of `embedding`, or nothing but species
    reduce ── mm ── mm ── gather of edges           complete the sum here, or after either product

The cheapest choice for all values and sums of a space together is a minimum cut. Its capacities are what a message
costs, for values that are fetched and sums that are completed, and what an operator's work costs, for values that are
computed on halo rows.

Source: closures by minimum cut, Picard, Management Science 22, 1268 (1976).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import torch
from torch import fx

from ...ir import META, Distributed, Placement, Space
from ...rules.cost import bytes_per_row, work_per_row
from ...rules.levels import Work, is_size, rows_of
from ...rules.linear import is_linear
from ...rules.messages import message
from ..spaces.other_rows import works_on_other_rows
from .thin_messages import read_through, written_through

aten = torch.ops.aten

_SOME = 0.5
"""A guess at the share of rows that cross where not all matter: see `thin_messages`."""

_LEAST = 1e-3
"""A cost that is as good as none, but keeps values that nothing reads from being computed."""


class HaloRows:
    """The choices for the halo rows of one space."""

    def __init__(
        self, program: Distributed, module: fx.GraphModule, work: Mapping[fx.Node, Work], space: Space
    ) -> None:
        self.program, self.module, self.work, self.space = program, module, work, space
        messages = {n: m for n in module.graph.nodes if (m := message(n)) is not None}
        self.here = {n: m for n, m in messages.items() if m.space(program.inputs) == space}
        """Messages of the space."""
        self.exchanges = [n for n, m in self.here.items() if m.kind == "exchange"]
        sums = {n: m for n, m in self.here.items() if m.kind == "reduce" and m.reduction == "sum"}
        self.reductions = [n for n, m in sums.items() if m.of_all_rows]
        whole = {p.name for p in program.pointers if not p.target.sharded}
        given = [i for i in program.inputs if i.kind in ("rows", "owned") or (i.kind == "pointer" and i.name in whole)]
        self._given = {i.name for i in given}

    def rows(self, node: fx.Node) -> list[fx.Node]:
        """Operands that have rows of the space."""
        return [n for n in node.all_input_nodes if self.has_rows(n)]

    def has_rows(self, node: fx.Node) -> bool:
        """True if a value has rows of the space, and of nothing else."""
        rows = rows_of(node) if not is_size(node) and META in node.meta else None
        return rows is not None and rows.space == self.space

    def is_given(self, node: fx.Node) -> bool:
        """True if a value is given by the graph itself: every rank can be given any rows of it."""
        return node.op == "placeholder" and node.name in self._given

    def is_computable(self, node: fx.Node) -> bool:
        """True if an operator can work on halo rows: it is row-local, and its sizes are known there."""
        return works_on_other_rows(self.program, node, self.work, self.space)

    def width(self, node: fx.Node) -> float:
        """Bytes of a row of a value that can be sent as it is; infinite for others."""
        place = node.meta[META]
        plain = isinstance(place, Placement) and (self.space,) in place.dims
        return bytes_per_row(self.program, node) if plain else math.inf


class Cut:
    """The cheapest choice of the values that are sent, and of those that are computed on halo rows.

    A value is *had* if its halo rows are there, fetched (at the cost of a message) or computed (at the cost of work). A
    sum is *pushed* if the contributions of halo rows to it are still apart from its owner's rows.
    """

    def __init__(self, halos: HaloRows, sent: float) -> None:
        self._halos, self._sent = halos, sent
        self._graph = nx.DiGraph()
        self._seen: dict[fx.Node, None] = {}
        self.linear = self._linear()
        for exchange in halos.exchanges:
            self._have(exchange.args[0])  # type: ignore[arg-type]
            self._edge((exchange.args[0], "out"), "sink", math.inf)
        for node in self.linear:
            self._push(node)
        side: set[Any] = set()
        if self._graph.nodes:
            _, (_, side) = nx.minimum_cut(self._graph, "source", "sink", flow_func=nx.algorithms.flow.boykov_kolmogorov)
        self.computed = {n for n in self._seen if (n, "in") in side}
        self.loaded = {n for n in self._seen if n not in self.computed and (n, "out") in side}
        self.pushed = {n for n in self.linear if (n, "pushed") in side}

    def bytes(self) -> int:
        """The bytes that cross for each halo row: those of values that are fetched and of sums that are completed."""
        fetched = [n for n in self.loaded if not self._halos.is_given(n)]
        completed = [n for n in self.pushed if any(u not in self.pushed for u in n.users)]
        completed += [n for n in self._halos.reductions if n not in self.pushed]
        return int(sum(map(self._halos.width, (*fetched, *completed))))

    def _edge(self, tail: Any, head: Any, capacity: float) -> None:
        if math.isfinite(capacity):
            self._graph.add_edge(tail, head, capacity=capacity)
        else:
            self._graph.add_edge(tail, head)

    def _work(self, node: fx.Node) -> float:
        return max(_LEAST, work_per_row(self._halos.program, node))

    def _have(self, node: fx.Node) -> None:
        """Let the value of `node` be wanted on halo rows."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node in self._seen:
                continue
            self._seen[node] = None
            given = self._halos.is_given(node)
            share = _SOME if written_through(self._halos.program, node) else 1.0
            self._edge((node, "in"), (node, "out"), _LEAST if given else share * self._sent * self._halos.width(node))
            able = self._halos.is_computable(node)
            self._edge("source", (node, "in"), self._work(node) if able else math.inf)
            for operand in self._halos.rows(node) if able else ():
                self._edge((operand, "out"), (node, "in"), math.inf)
                pending.append(operand)

    def _linear(self) -> dict[fx.Node, list[fx.Node]]:
        """The operators that are linear in reductions, with their operands that are reductions or linear in them."""
        found: dict[fx.Node, list[fx.Node]] = {node: [] for node in self._halos.reductions}
        for node in self._halos.module.graph.nodes:
            operands = [n for n in node.all_input_nodes if n in found]
            if operands and self._halos.is_computable(node) and _is_linear(node, set(operands)):
                found[node] = operands
        return found

    def _push(self, node: fx.Node) -> None:
        """Let the sum that `node` is be completed after it."""
        for operand in self.linear[node] if node.target is not aten.add.Tensor else ():
            self._edge((operand, "pushed"), (node, "pushed"), math.inf)
        if self.linear[node]:
            self._edge("source", (node, "pushed"), self._work(node))
            for factor in factors(node, self.linear[node], self._halos):
                self._have(factor)
                self._edge((factor, "out"), (node, "pushed"), math.inf)
        else:
            self._edge((node, "pushed"), "sink", math.inf)
        readers = [user for user in node.users if user not in self.linear]
        share = _SOME if read_through(self._halos.program, node, readers) else 1.0
        self._edge((node, "whole"), (node, "pushed"), share * self._sent * self._halos.width(node))
        for user in node.users:
            self._edge((user, "pushed") if user in self.linear else "source", (node, "whole"), math.inf)


def _is_linear(node: fx.Node, operands: set[fx.Node]) -> bool:
    """True if contributions may be added to the result of `node` instead of to `operands`."""
    if node.target is not aten.add.Tensor:
        return is_linear(node, operands)
    shapes = [n.meta["val"].shape for n in node.args if isinstance(n, fx.Node)]  # one may be added at the owner only
    return len(shapes) == 2 and shapes[0] == shapes[1] and not node.kwargs


def factors(node: fx.Node, operands: list[fx.Node], halos: HaloRows) -> Iterator[fx.Node]:
    """The values that `node` needs on halo rows besides the contributions to `operands`."""
    if node.target is not aten.add.Tensor:
        yield from (n for n in halos.rows(node) if n not in operands)
