"""Pass 15: send the narrowest form of a value, and compute the rest from it on halo rows.

    x = mm(embedding, w)       [atoms, 128]          e = halo_gather(embedding)         [halo, 16]
    h = halo_exchange(x)                       =>    h = halo_join(x, mm(e, w))

    c = halo_reduce(table)     [atoms, 128]          y = mm(owned part of table, v)
    y = mm(c, v)               [atoms, 16]     =>    y = halo_scatter(mm(halo part of table, v), y)

What is made of the graph's own values row by row (features of the species, the first layer's) needs no message at all:
every rank is given the whole graph. Gradients that are on their way back to owners go through linear operators as they
are, so they cross where they are narrowest. The cheapest set of messages is a minimum cut between what must be there
and what is there anyway, for values on their way to readers and for sums on their way to owners at once: a linear
operator on halo rows needs its other factors there.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import sympy
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from ..ir import META, Input, Placement, Program, Space, copy_graph, halo_name, is_random, replace_graph
from ..rules.linear import is_linear
from ..runtime.halo import halo_exchange, halo_gather, halo_join, halo_reduce, halo_scatter
from ..sizes import size_nodes
from .levels import Work, is_size, levels, rows_of, tables_of
from .store_or_recompute import bytes_per_row, work_per_row
from .thin_messages import read_through, written_through

aten = torch.ops.aten

SENT = 32.0
"""What sending a byte costs, in bytes that a processor reads or writes in the same time."""

_FREE_WORK = 1e6
"""What sending a byte costs where work costs next to nothing."""

_SOME = 0.5
"""A guess at the share of rows that cross where not all matter: see `thin_messages`."""

_LEAST = 1e-3
"""What is as good as free, so that nothing is done for nobody."""


def narrow_halos(program: Program, sent: float = SENT) -> Program:
    """Return `program` with exchanges and reductions where they are narrowest; `sent` says how dear messages are."""
    least: list[tuple[str, int]] = []
    for space in program.spaces:
        program, bound = _narrow(program, space, sent)
        least += [(space.name, bound)] if bound else []
    return dataclasses.replace(program, least=tuple(least))


def _narrow(program: Program, space: Space, sent: float) -> tuple[Program, int]:
    """The rewritten program, and the least bytes that may cross for each halo row of the space."""
    module, nodes = copy_graph(program.graph)
    work = {nodes[node]: found for node, found in levels(program).items()}
    halo = _Halos(program, module, work, space)
    if not halo.exchanges and not halo.reductions:
        return program, 0
    cut, bound = _Cut(halo, sent), _Cut(halo, _FREE_WORK).bytes()
    tables = {e.args[0] for e in halo.exchanges}
    if not any(n not in tables or halo.is_given(n) for n in cut.loaded) and not cut.pushed - set(halo.reductions):
        return program, bound  # all as it is
    return _Rewriter(halo, cut).rewrite(), bound


class _Halos:
    """What may happen on the halo rows of one space."""

    def __init__(self, program: Program, module: fx.GraphModule, work: Mapping[fx.Node, Work], space: Space) -> None:
        self.program, self.module, self.work, self.space = program, module, work, space
        self.exchanges = [n for n in module.graph.nodes if n.target is halo_exchange and self._is_here(n)]
        sums = [n for n in module.graph.nodes if n.target is halo_reduce and len(n.args) == 5]
        self.reductions = [n for n in sums if self._is_here(n)]

    def _is_here(self, node: fx.Node) -> bool:
        plan = next(i for i in self.program.inputs if i.name == node.args[1].name)  # type: ignore[union-attr]
        return plan.space == self.space

    def rows(self, node: fx.Node) -> list[fx.Node]:
        """Operands that have rows of the space."""
        return [n for n in node.all_input_nodes if self.has_rows(n)]

    def has_rows(self, node: fx.Node) -> bool:
        """Whether a value has rows of the space, and of nothing else."""
        rows = rows_of(node) if not is_size(node) and META in node.meta else None
        return rows is not None and rows.space == self.space

    def is_given(self, node: fx.Node) -> bool:
        """Whether a value is the graph's own, of which every rank is given any rows."""
        kinds = {i.name: i.kind for i in self.program.inputs}
        return node.op == "placeholder" and (
            kinds[node.name] == "rows" or (kinds[node.name] == "pointer" and not self._target(node).sharded)
        )

    def _target(self, pointer: fx.Node) -> Space:
        found = next(p for p in self.program.pointers if p.name == pointer.name)
        return found.target

    def is_computable(self, node: fx.Node) -> bool:
        """Whether an operator can work on halo rows: it is row-local, and its sizes are known there."""
        found = self.work.get(node)
        if found is None or found.kind != "row" or found.space != self.space or is_random(node):
            return False
        if any(isinstance(p, Placement) and p.sharded for t in tables_of(node) for p in [t.meta.get(META)]):
            return False
        return all(self.size(n) is not None for n in node.all_input_nodes if is_size(n))

    def size(self, node: fx.Node) -> sympy.Expr | None:
        """A size, as it is for halo rows; None if the operator that has it cannot work there."""
        value = node.meta["val"]
        expr = self.program.size(value) if isinstance(value, torch.SymInt) else sympy.Integer(0)
        if self.space.symbol not in expr.free_symbols:
            return expr
        number = next((i for i in self.program.inputs if i.name == node.name and i.kind == "number"), None)
        factor = sympy.cancel(expr / self.space.symbol)
        return None if number is not None or not factor.is_Integer else factor * self.space.symbol

    def width(self, node: fx.Node) -> float:
        """Bytes of a row of a value that can be sent as it is; infinite for others."""
        place = node.meta[META]
        plain = isinstance(place, Placement) and (self.space,) in place.dims
        return bytes_per_row(self.program, node) if plain else math.inf


class _Cut:
    """What is sent and what is computed on halo rows: the cheapest choice.

    A value is *had* if its halo rows are there, fetched (at the cost of a message) or computed (at the cost of work).
    A sum is *pushed* if what halo rows contribute to it is still apart from its owner's rows.
    """

    def __init__(self, halos: _Halos, sent: float) -> None:
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
        """What crosses for each halo row: values that are fetched, sums that are completed."""
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
        """The value of `node` may be wanted on halo rows."""
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
        """What is linear in the reductions, with the operands that are reductions or linear in them."""
        found: dict[fx.Node, list[fx.Node]] = {node: [] for node in self._halos.reductions}
        for node in self._halos.module.graph.nodes:
            operands = [n for n in node.all_input_nodes if n in found]
            if operands and self._halos.is_computable(node) and _is_linear(node, set(operands)):
                found[node] = operands
        return found

    def _push(self, node: fx.Node) -> None:
        """The sum that `node` is may be completed after it."""
        for operand in self.linear[node] if node.target is not aten.add.Tensor else ():
            self._edge((operand, "pushed"), (node, "pushed"), math.inf)
        if self.linear[node]:
            self._edge("source", (node, "pushed"), self._work(node))
            for factor in _factors(node, self.linear[node], self._halos):
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
    """Whether contributions may be added to the result of `node` rather than to `operands`."""
    if node.target is not aten.add.Tensor:
        return is_linear(node, operands)
    shapes = [n.meta["val"].shape for n in node.args if isinstance(n, fx.Node)]  # one may be added at the owner only
    return len(shapes) == 2 and shapes[0] == shapes[1] and not node.kwargs


def _factors(node: fx.Node, operands: list[fx.Node], halos: _Halos) -> Iterator[fx.Node]:
    """What `node` needs on halo rows beside the contributions to `operands`."""
    if node.target is not aten.add.Tensor:
        yield from (n for n in halos.rows(node) if n not in operands)


class _Rewriter:
    """Writes the operators on halo rows, and the messages."""

    def __init__(self, halos: _Halos, cut: _Cut) -> None:
        self.halos, self.cut = halos, cut
        self.program, self.graph = halos.program, halos.module.graph
        env = self.program.capture.shape_env
        self.symbol = env.create_symbol(1009, ConstantSource(f"halo_of_{halos.space}"), DimDynamic.DYNAMIC)
        self.space = Space(halo_name(halos.space.name), self.symbol, halo_of=halos.space)
        self.inputs = list(self.program.inputs)
        first = (halos.exchanges or halos.reductions)[0]
        self.send_rows, self.splits, self.rows = first.args[1:4]
        self.rows.meta["val"] = self._symint(self.symbol)  # type: ignore[union-attr]
        self.last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
        self.there: dict[fx.Node, fx.Node] = {}
        """By value, its halo rows."""
        self.apart: dict[fx.Node, fx.Node] = {}
        """By pushed sum, what halo rows contribute to it."""

    def rewrite(self) -> Program:
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
            if node.target in (halo_exchange, halo_reduce) and not node.users:
                self.graph.erase_node(node)
        spaces = (*self.program.halo_spaces, self.space)
        return replace_graph(self.program, self.halos.module, inputs=tuple(self.inputs), halo_spaces=spaces)

    def _kept(self) -> set[fx.Node]:
        """Exchanged tables of which nothing is computed on halo rows: their exchange stays as it is."""
        wanted = {n for node in self.cut.computed for n in self.halos.rows(node)}
        for node in self.cut.pushed:
            wanted.update(_factors(node, self.cut.linear[node], self.halos) if self.cut.linear[node] else ())
        tables = {e.args[0] for e in self.halos.exchanges}
        return {n for n in self.cut.loaded if n in tables and n not in wanted and not self.halos.is_given(n)}

    def _have(self, node: fx.Node) -> None:
        """Put the halo rows of a value after it."""
        if self.halos.is_given(node):
            self.there[node] = self._given(node)
        elif node in self.cut.loaded:
            dim = self._dim(node)
            with self.graph.inserting_after(node):
                new = self.graph.call_function(halo_gather, (node, self.send_rows, self.splits, self.rows, dim))
            self.there[node] = self._like(new, node)
        else:
            self.there[node] = self._copy(node, self.there)

    def _given(self, node: fx.Node) -> fx.Node:
        """The same input of the graph, its halo rows."""
        given = next(i for i in self.inputs if i.name == node.name)
        with self.graph.inserting_after(self.last):
            new = self.graph.placeholder(f"{node.name}_halo")
        new.target = new.name
        self.last = new
        self.inputs.append(dataclasses.replace(given, name=new.name))
        return self._like(new, node)

    def _copy(self, node: fx.Node, operands: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """The same operator on halo rows, after `node`."""
        sizes = {n: self._size(node, n) for n in node.all_input_nodes if is_size(n)}
        with self.graph.inserting_after(node):
            new = self.graph.node_copy(node, lambda n: sizes.get(n) or operands.get(n, n))
        return self._like(new, node)

    def _size(self, node: fx.Node, size: fx.Node) -> fx.Node:
        """A size of `node`, counted in halo rows."""
        expr = self.halos.size(size)
        assert expr is not None
        if self.halos.space.symbol not in expr.free_symbols:
            return size
        with self.graph.inserting_before(node):
            new: fx.Node = size_nodes(self.graph, self._counted(expr), lambda _: self.rows)  # type: ignore[arg-type,return-value]
        new.meta.setdefault(META, Placement(rule="size"))
        return new

    def _counted(self, expr: sympy.Expr) -> sympy.Expr:
        return expr.xreplace({self.halos.space.symbol: self.symbol})

    def _like(self, new: fx.Node, node: fx.Node) -> fx.Node:
        """Let `new` be on halo rows what `node` is on owned rows."""
        new.meta = {
            **node.meta,
            META: _mapped(node.meta[META], self._placed),
            "val": _mapped(node.meta["val"], self._value),
        }
        return new

    def _placed(self, place: Placement) -> Placement:
        dims = tuple(tuple(self.space if f == self.halos.space else f for f in dim) for dim in place.dims)
        return dataclasses.replace(place, dims=dims)

    def _value(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = [self._symint(self._counted(self.program.size(n))) for n in value.shape]
        with value.fake_mode:  # type: ignore[attr-defined]
            return torch.empty(shape, dtype=value.dtype, device=value.device)

    def _symint(self, expr: sympy.Expr) -> Any:
        env = self.program.capture.shape_env
        return int(expr) if expr.is_Integer else env.create_symintnode(expr, hint=None)

    def _dim(self, node: fx.Node) -> int:
        return node.meta[META].dims.index((self.halos.space,))  # type: ignore[no-any-return]

    def _join(self, exchange: fx.Node) -> None:
        table: Any = exchange.args[0]
        with self.graph.inserting_before(exchange):
            joined = self.graph.call_function(halo_join, (table, self.there[table], self.rows, exchange.args[4]))
        joined.meta = dict(exchange.meta)
        exchange.replace_all_uses_with(joined)

    def _push(self, node: fx.Node) -> None:
        """Keep what halo rows contribute to a sum apart, and complete the sum for those who need it whole."""
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
        arguments = (self.apart[mine], self.send_rows, self.splits, mine, self._dim(node))
        with self.graph.inserting_after(last):
            whole = self.graph.call_function(halo_scatter, arguments)
        whole.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, whole)

    def _parted(self, node: fx.Node) -> fx.Node:
        """The owned rows of a reduction's table, for those who do not need the sum; what halo rows add is put apart."""
        table, owned, dim = node.args[0], self._owned(), self._dim(node)
        with self.graph.inserting_before(node):
            mine = self.graph.call_function(aten.slice.Tensor, (table, dim, 0, owned))
            others = self.graph.call_function(aten.slice.Tensor, (table, dim, owned, sys.maxsize))
        mine.meta = dict(node.meta)
        self.apart[mine] = self._like(others, node)
        for user in [u for u in node.users if u in self.cut.pushed]:
            user.replace_input_with(node, mine)
        return mine

    def _contribute(self, node: fx.Node, operands: list[fx.Node]) -> fx.Node:
        """What halo rows contribute to a sum after a linear operator; returns the last operator written."""
        apart = [n for n in node.all_input_nodes if n in self.apart]
        if node.target is aten.add.Tensor and len(apart) == 1:
            self.apart[node] = self.apart[apart[0]]
            return node
        self.apart[node] = self._copy(node, {**self.there, **{n: self.apart[n] for n in apart}})
        return self.apart[node]

    def _owned(self) -> fx.Node:
        """The number of owned rows."""
        given = next((i for i in self.inputs if i.kind == "size" and i.space == self.halos.space), None)
        if given is not None:
            return next(n for n in self.graph.nodes if n.name == given.name)
        with self.graph.inserting_after(self.last):
            new = self.graph.placeholder(f"n_{self.halos.space}")
        new.target = new.name
        new.meta = {META: Placement(rule="size"), "val": self._symint(self.halos.space.symbol)}
        self.last = new
        self.inputs.append(Input(new.name, "size", space=self.halos.space))
        return new


def _mapped(value: Any, function: Any) -> Any:
    """A function of each of several values, or of one."""
    return type(value)(map(function, value)) if isinstance(value, list | tuple) else function(value)
