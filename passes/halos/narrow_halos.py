"""Send the narrowest form of a value, and compute the rest from it on halo rows.

    x = mm(embedding, w)       [atoms, 128]          e = halo_gather(embedding)         [halo, 16]
    h = halo_exchange(x)                       =>    h = halo_join(x, mm(e, w))

    c = halo_reduce(table)     [atoms, 128]          y = mm(owned part of table, v)
    y = mm(c, v)               [atoms, 16]     =>    y = halo_scatter(mm(halo part of table, v), y)

What is made of the graph's own values row by row (features of the species, the first layer's) needs no message at all:
every rank is given the whole graph. Gradients that are on their way back to owners go through linear operators as they
are, so they cross where they are narrowest. What is sent is chosen in `cut_messages`, for values on their way to
readers and for sums on their way to owners at once: a linear operator on halo rows needs its other factors there.
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from torch import fx

from ...ir import META, Distributed, Input, Placement, Space, halo_name, replace_graph
from ...ir.graphs import copy_graph
from ...ir.writer import described, write
from ...rules.levels import levels
from ...rules.messages import Message, is_message
from ...runtime.operators.halo import halo_join
from ..spaces.other_rows import Inputs, OtherRows, new_symbol
from .cut_messages import Cut, HaloRows, factors

aten = torch.ops.aten

SENT = 32.0
"""The cost of sending a byte, in bytes that a processor reads or writes in the same time."""

_FREE_WORK = 1e6
"""The cost of sending a byte if work costs next to nothing."""


def narrow_halos(program: Distributed, sent: float = SENT) -> Distributed:
    """Return `program` with exchanges and reductions where they are narrowest; `sent` is the price of messages."""
    least: list[tuple[str, int]] = []
    for space in program.spaces:
        program, bound = _narrow(program, space, sent)
        least += [(space.name, bound)] if bound else []
    return dataclasses.replace(program, narrowest=tuple(least))


def _narrow(program: Distributed, space: Space, sent: float) -> tuple[Distributed, int]:
    """The rewritten program, and the least bytes that may cross for each halo row of the space."""
    module, nodes = copy_graph(program.graph)
    work = {nodes[node]: found for node, found in levels(program).items()}
    halo = HaloRows(program, module, work, space)
    if not halo.exchanges and not halo.reductions:
        return program, 0
    cut, bound = Cut(halo, sent), Cut(halo, _FREE_WORK).bytes()
    tables = {e.args[0] for e in halo.exchanges}
    if not any(n not in tables or halo.is_given(n) for n in cut.loaded) and not cut.pushed - set(halo.reductions):
        return program, bound  # all as it is
    return _Rewriter(halo, cut).rewrite(), bound


class _Rewriter:
    """Writes the operators on halo rows, and the messages."""

    def __init__(self, halos: HaloRows, cut: Cut) -> None:
        self.halos, self.cut = halos, cut
        self.program, self.graph = halos.program, halos.module.graph
        symbol = new_symbol(self.program, f"halo_of_{halos.space}", 1009)
        self.space = Space(halo_name(halos.space.name), symbol, halo_of=halos.space)
        self.inputs = Inputs(self.program, self.graph)
        first = halos.here[(halos.exchanges or halos.reductions)[0]]
        assert first.halo_rows is not None
        self.send_rows, self.splits, self.rows = first.send_rows, first.splits, first.halo_rows
        self.other = OtherRows(self.program, self.graph, halos.space, self.space, self.rows)
        self.rows.meta["val"] = self.other.symint(symbol)
        self.there: dict[fx.Node, fx.Node] = {}
        """For each value, its halo rows."""
        self.apart: dict[fx.Node, fx.Node] = {}
        """For each pushed sum, the contribution of halo rows to it."""

    def rewrite(self) -> Distributed:
        order = [n for n in self.graph.nodes if n.op != "output"]
        kept = self._kept()
        for node in order:
            if node in self.cut.computed or (node in self.cut.loaded and node not in kept):
                self._have(node)
        for exchange in self.halos.exchanges:
            if exchange.args[0] not in kept:
                self._join(exchange)
        for node in order:
            if node in self.cut.pushed:
                self._push(node)
        for node in reversed(order):
            if is_message(node, "exchange", "reduce") and not node.users:
                self.graph.erase_node(node)
        spaces = (*self.program.halo_spaces, self.space)
        return replace_graph(self.program, self.halos.module, inputs=tuple(self.inputs.all), halo_spaces=spaces)

    def _kept(self) -> set[fx.Node]:
        """Exchanged tables that no computation on halo rows needs: their exchange stays as it is."""
        wanted = {n for node in self.cut.computed for n in self.halos.rows(node)}
        for node in self.cut.pushed:
            wanted.update(factors(node, self.cut.linear[node], self.halos) if self.cut.linear[node] else ())
        tables = {e.args[0] for e in self.halos.exchanges}
        return {n for n in self.cut.loaded if n in tables and n not in wanted and not self.halos.is_given(n)}

    def _have(self, node: fx.Node) -> None:
        """Put the halo rows of a value after it."""
        if self.halos.is_given(node):
            self.there[node] = self._given(node)
        elif node in self.cut.loaded:
            dim = self._dim(node)
            with self.graph.inserting_after(node):
                new = Message("gather", node, self.send_rows, self.splits, dim, self.rows).written(
                    self.graph, like=node
                )
            self.there[node] = self.other.like(new, node)
        else:
            self.there[node] = self.other.copy(node, self.there)

    def _given(self, node: fx.Node) -> fx.Node:
        """The same input of the graph, for halo rows."""
        given = next(i for i in self.inputs.all if i.name == node.name)
        if given.kind == "owned":
            given = dataclasses.replace(given, space=self.space)
        return self.other.like(self.inputs.add(f"{node.name}_halo", given), node)

    def _dim(self, node: fx.Node) -> int:
        return node.meta[META].dims.index((self.halos.space,))  # type: ignore[no-any-return]

    def _join(self, exchange: fx.Node) -> None:
        sent = self.halos.here[exchange]
        with self.graph.inserting_before(exchange):
            rows = sent.value, self.there[sent.value]
            joined = write(self.graph, halo_join, (*rows, self.rows, sent.dim), like=exchange)
        exchange.replace_all_uses_with(joined)

    def _push(self, node: fx.Node) -> None:
        """Keep the contribution of halo rows to a sum apart, and complete the sum for readers that need it whole."""
        users = [u for u in node.users if u not in self.cut.pushed]
        mine, operands = node, self.cut.linear[node]
        if not operands:
            if len(users) == len(node.users):
                return  # nothing is gained: the reduction stays as it is
            mine = self._parted(node)
            last = self.apart[mine]
        else:
            last = self._contribute(node, operands)
        if not users:
            return
        dim = self._dim(node)
        with self.graph.inserting_after(last):
            sent = Message("scatter", self.apart[mine], self.send_rows, self.splits, dim, onto=mine)
            whole = sent.written(self.graph, like=node)
        for user in users:
            user.replace_input_with(node, whole)

    def _parted(self, node: fx.Node) -> fx.Node:
        """The owned rows of a reduction's table, for readers that do not need the sum.

        The contribution of halo rows is put apart.
        """
        table, owned, dim = node.args[0], self._owned(), self._dim(node)
        with self.graph.inserting_before(node):
            mine = write(self.graph, aten.slice.Tensor, (table, dim, 0, owned), like=node)
            others = write(self.graph, aten.slice.Tensor, (table, dim, owned, sys.maxsize), like=node)
        self.apart[mine] = self.other.like(others, node)
        for user in [u for u in node.users if u in self.cut.pushed]:
            user.replace_input_with(node, mine)
        return mine

    def _contribute(self, node: fx.Node, operands: list[fx.Node]) -> fx.Node:
        """Write the contribution of halo rows to a sum after a linear operator; return the last operator written."""
        apart = [n for n in node.all_input_nodes if n in self.apart]
        if node.target is aten.add.Tensor and sum(n in self.apart for n in node.args) == 1:  # not x + x
            self.apart[node] = self.apart[apart[0]]
            return node
        self.apart[node] = self.other.copy(node, {**self.there, **{n: self.apart[n] for n in apart}})
        return self.apart[node]

    def _owned(self) -> fx.Node:
        """The number of owned rows."""
        given = next((i for i in self.inputs.all if i.kind == "size" and i.space == self.halos.space), None)
        if given is not None:
            return next(n for n in self.graph.nodes if n.name == given.name)
        name = f"n_{self.halos.space}"
        new = self.inputs.add(name, Input(name, "size", space=self.halos.space))
        return described(new, value=self.other.symint(self.halos.space.symbol), place=Placement(rule="size"))
