"""Run each stretch of row-local work block by block.

    h = gather(x, sender)            [edges, 64]
    m = mul(h, weights)              [edges, 64]      y = region(n_edges, x, sender, weights, receiver, zeros)
    y = index_add(zeros, receiver, m)            =>   # for each block of edges: gather, multiply, add

Values that only one region needs exist for one block of rows at a time. `levels` says which operators form a region,
`store_or_recompute` what passes from one to another through memory.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import sympy
import torch
from torch import fx

from ...ir import META, Distributed, Space, Tiled, grown, is_random
from ...ir.graphs import anchor, copy_node, graph_module
from ...ir.operators import facts
from ...ir.sizes import size_nodes
from ...ir.writer import described, write
from ...rules.cost import bytes_per_row
from ...rules.indexing import accesses, reduction
from ...rules.levels import (
    Rows,
    Work,
    continues,
    is_fresh,
    is_size,
    rows_of,
    source_of,
    tables_of,
)
from ...rules.messages import Message, message
from ...runtime.execution.tiles import Add, Reduce, Region, RegionSpec, Result, Slice, Store, taken
from ...runtime.operators.halo import halo_join, halo_join_
from .choice import Choice

aten = torch.ops.aten

_ROWS = sympy.Symbol("rows")
HOLD = 64.0
"""The cost of holding a byte until it is read, in bytes moved: the price of memory against time."""
BLOCK_BYTES = 8 * 2**20
"""Bytes that a block's values may take: the share of the last-level cache that one thread has."""


def tile(program: Distributed, hold: float = HOLD, in_step: bool = False) -> Tiled:
    """Return `program` with `tiled`, the same graph as calls of regions.

    Args:
        program: a distributed program.
        hold: the price of memory.
        in_step: make groups of regions that can run in step, see `runtime.execution.in_step`: a stretch of atoms
            together with that of their edges. What they pass to each other then exists for a stretch at a time.
    """
    return grown(program, Tiled, tiled=_Tiler(program, hold, in_step).build(), differentiated=program.graph)


class _Tiler:
    def __init__(self, program: Distributed, hold: float, in_step: bool) -> None:
        self.program, self.in_step = program, in_step
        self.nodes: list[fx.Node] = list(program.graph.graph.nodes)
        self.position = {n: i for i, n in enumerate(self.nodes)}
        self.choice = Choice(program, hold, in_step)
        self.work, self.group = self.choice.work, self.choice.group
        self.inputs = {i.name: i for i in program.inputs}
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.here: dict[fx.Node, fx.Node] = {}
        """What the group at hand computed."""
        self.tables: dict[fx.Node, fx.Node] = {}
        """The tables, with owned rows and room for halo rows, that hold complete values."""
        self.regions: dict[str, Region] = {}

    def build(self) -> fx.GraphModule:
        for node in self.nodes:
            if node.op in ("placeholder", "get_attr") or (node.op == "call_function" and is_size(node)):
                self._copy(node)
        for group in range(max(self.group.values(), default=0) + 1):
            for node in self.nodes:
                if node in self.work and self.work[node].kind == "whole" and self.group[node] == group:
                    self._copy(node)
            self.here = {}
            for space, level, nodes, roots in self.choice.regions(group):
                self._emit(space, level, group, nodes, roots)
        self.here = {}
        self._copy(self.nodes[-1])
        module = graph_module({**_attributes(self.program.graph), **self.regions}, self.graph)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.graph.lint()
        return module

    def _copy(self, node: fx.Node) -> None:
        sent = message(node)
        if sent is not None:
            self._send(node, sent)
        elif node.target is halo_join and self._has_room(node, node.args[0]):  # type: ignore[arg-type]
            table, *rest = node.args
            given = (self._whole(a) if isinstance(a, fx.Node) else a for a in rest)
            self.env[node] = self._call(halo_join_, (self.tables[table], *given), node)  # type: ignore[index]
        else:
            self.env[node] = copy_node(self.graph, node, self._whole)

    def _send(self, node: fx.Node, sent: Message) -> None:
        """Start a message and wait for it, in the table that has room for what comes, if there is one."""
        table, in_place = self._whole(sent.value), False
        if sent.kind == "exchange" and self._has_room(node, sent.value):
            table, in_place = self.tables[sent.value], True
        elif sent.kind == "reduce" and len(sent.value.users) == 1:
            self.tables[node], in_place = table, True
        self.env[node] = sent.on(self._whole, table).begun(self.graph, node, in_place)

    def _has_room(self, joined: fx.Node, rows: fx.Node) -> bool:
        """True if rows stand in a table with room for the halo rows that are put beside them."""
        return rows in self.tables and self.tables[rows].meta[META].dims == joined.meta[META].dims

    def _call(self, function: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A call whose result takes the place of `like`."""
        return write(self.graph, function, args, like=like)

    def _whole(self, node: fx.Node) -> fx.Node:
        """The complete value of a node in the outer graph."""
        if node in self.here:
            return self.here[node]
        if node not in self.env and is_fresh(node):
            self._copy(node)
        return self.env[node]

    def _emit(self, space: Space, level: int, group: int, computed: set[fx.Node], given: list[fx.Node]) -> None:
        name = f"region_{len(self.regions)}"
        nodes = sorted(computed, key=self.position.__getitem__)
        roots = sorted(given, key=self.position.__getitem__)
        body = _Body(self, space, nodes, roots)
        lasting = {n for n in roots if self.group[n] == group and n in self.choice.stored}
        room = {n: _exchange_of(n) if self.work[n].kind == "row" and n in lasting else None for n in roots}
        spec = RegionSpec(
            name,
            str(space),
            level,
            tuple(body.slices),
            tuple(_result(n, self.work[n], room[n], roots) for n in roots),
            _row_bytes(self.program, body.module.graph, space),
            any(is_random(n) for n in nodes),
            group if self.in_step else None,
        )
        block = max(16, int(BLOCK_BYTES / max(spec.row_bytes, 1.0)))
        self.regions[name] = Region(spec, body.module, block)
        halos = [self.env[_room(e)[0]] for e in room.values() if e is not None]
        tables = {n: self._table(n) for n in roots if self.work[n].kind == "scatter" and continues(n) not in roots}
        size = self._rows(space, body)
        given = [self._whole(n) for n in body.given]
        call = described(self.graph.call_module(name, (size, *given, *halos, *tables.values())), value=None)
        for i, node in enumerate(roots):
            result = spec.results[i]
            if isinstance(result, Add) and result.after is not None:
                tables[node] = tables[roots[result.after]]
            table = tables[node] if isinstance(result, Add) and result.reuse else None
            found = self._call(taken, (call, i) if table is None else (call, i, table), node)
            exchange = room[node]
            if exchange is not None:
                found = self._with_room(node, found, exchange, size)
            self.here[node] = found
            if self.group[node] == group:
                self.env[node] = found

    def _with_room(self, node: fx.Node, table: fx.Node, exchange: fx.Node, rows: fx.Node) -> fx.Node:
        """The owned rows of a result that has room for halo rows."""
        self.tables[node] = table
        self.tables[node].meta[META] = exchange.meta[META]
        return self._call(aten.slice.Tensor, (self.tables[node], _room(exchange)[1], 0, rows), node)

    def _rows(self, space: Space, body: _Body) -> Any:
        """The number of rows of this rank: an input of the program, or read off an operand that has them."""
        for node in self.nodes:
            if node.op == "placeholder" and self._is_size_of(node, space):
                return self.env[node]
        for node in self.nodes if space.blocks else ():  # computed from the sizes of its blocks
            if is_size(node) and not _is_number(self, node) and self.program.size(node.meta["val"]) == space.symbol:
                return self.env[node]
        of_rank = ((n, r) for n in self.nodes if n.op == "placeholder" and (r := rows_of(n)) and r.space == space)
        node, part = next((n, s) for n, s in zip(body.given, body.slices, strict=True) if s is not None)
        if self.in_step:  # what a group reads off is there before it
            node, part = next(((n, Slice(r.dim, r.factor)) for n, r in of_rank), (node, part))
        entries = node.meta["val"].shape[part.dim]
        rows = write(self.graph, aten.sym_size.int, (self._whole(node), part.dim), value=entries)
        if part.factor == 1:
            return rows
        return write(self.graph, operator.floordiv, (rows, part.factor), value=entries // part.factor)

    def _is_size_of(self, node: fx.Node, space: Space) -> bool:
        given = self.inputs[node.name]
        kind, of = ("size", space) if space.halo_of is None else ("halo_size", space.halo_of)
        return given.kind == kind and given.space == of

    def _table(self, node: fx.Node) -> fx.Node:
        """The table that a scatter adds to. It is made anew if it is all zeros, so that it can be changed in place."""
        base: Any = node.args[0]
        return self._fresh(base) if is_fresh(base) else self._whole(base)

    def _fresh(self, node: fx.Node) -> fx.Node:
        """A new constant table; padding for halo rows of the same constant is made with it."""
        if node.target is aten.full.default:
            return copy_node(self.graph, node, self.env.__getitem__)
        args: Any = node.args
        inner, padding = args[:2]
        new = self._fresh(inner)
        size: list[Any] = list(new.args[0])  # type: ignore[arg-type]
        for i, more in enumerate(padding[1::2]):
            if more != 0:
                with self.graph.inserting_before(new):
                    both = (size[-1 - i], self.env.get(more, more))
                    size[-1 - i] = write(self.graph, operator.add, both, value=None)
        new.update_arg(0, size)
        return described(new, like=node)


class _Body:
    """The graph that a region runs on each block."""

    def __init__(self, tiler: _Tiler, space: Space, nodes: list[fx.Node], roots: list[fx.Node]) -> None:
        self.tiler, self.space = tiler, space
        self.graph = fx.Graph()
        self.rows = self.graph.placeholder("rows")
        self.end = self.graph.create_node("call_function", anchor)
        self.given: list[fx.Node] = []
        self.slices: list[Slice | None] = []
        self.inside: dict[tuple[fx.Node, bool], fx.Node] = {}
        self.sizes: dict[sympy.Expr, Any] = {}
        outputs: list[Any] = []
        for node in nodes:
            if tiler.work[node].kind != "scatter":
                self._copy(node)
        for root in roots:
            if tiler.work[root].kind == "scatter":
                source = source_of(root)
                assert source is not None
                outputs += [self._operand(accesses(root)[0].index), self._operand(source)]
            else:
                outputs.append(self.inside[root, False])
        self.graph.erase_node(self.end)
        self.graph.output(tuple(outputs))
        self.module = graph_module({}, self.graph)

    def _copy(self, node: fx.Node) -> None:
        tables = tables_of(node)
        new = copy_node(self.graph, node, lambda n: self._operand(n, n in tables))
        self.inside[node, False] = new

    def _operand(self, node: fx.Node, whole: bool = False) -> Any:
        if is_size(node):
            return self._size(node)
        if (node, whole) in self.inside:
            return self.inside[node, whole]
        rows = None if whole else rows_of(node)
        sliced = rows is not None and rows.space == self.space
        assert rows is None or sliced, f"{node} has rows of {rows} in a region of {self.space}"
        return self._input(node, whole, Slice(rows.dim, rows.factor) if rows is not None else None)

    def _input(self, node: fx.Node, whole: bool, part: Slice | None) -> fx.Node:
        with self.graph.inserting_before(self.end):
            new = described(self.graph.placeholder(node.name), like=node)
        new.target = new.name  # a value may be given twice: whole, and a block of its rows
        if node.op == "get_attr":
            described(new, value=getattr(self.tiler.program.graph, str(node.target)))
        self.given.append(node)
        self.slices.append(part)
        self.inside[node, whole] = new
        return new

    def _size(self, node: fx.Node) -> Any:
        """A size: that of the block if it is of this space, else as it is."""
        expr = self.tiler.program.size(node.meta["val"]) if isinstance(node.meta["val"], torch.SymInt) else None
        if expr is None or not self._is_of_block(expr) or _is_number(self.tiler, node):
            return self.inside.get((node, True)) or self._input(node, True, None)
        if expr not in self.sizes:
            if self.space.blocks:
                factor = sympy.cancel(expr / self.space.symbol)
                rows: Any = size_nodes(self.graph, factor * _ROWS, lambda _: self.rows)
            else:
                rows = size_nodes(self.graph, expr, self._symbol)
            self.sizes[expr] = rows
        return self.sizes[expr]

    def _is_of_block(self, expr: sympy.Expr) -> bool:
        """True if a size grows with the rows of this space; for a joined list, only if it is a multiple of them."""
        if self.space.blocks:
            return not sympy.cancel(expr / self.space.symbol).free_symbols
        return self.space.symbol in expr.free_symbols

    def _symbol(self, symbol: sympy.Symbol) -> fx.Node:
        if symbol == self.space.symbol:
            return self.rows
        sizes = [n for n in self.tiler.nodes if n.op == "placeholder" and is_size(n) and not _is_number(self.tiler, n)]
        for node in sizes:
            if self.tiler.program.size(node.meta["val"]) == symbol:
                return self.inside.get((node, True)) or self._input(node, True, None)
        raise AssertionError(f"no input holds the size {symbol}")


def _is_number(tiler: _Tiler, node: fx.Node) -> bool:
    """True if a symbolic number is used as a number (a count over all ranks), not as a size."""
    if node.op == "placeholder":
        return tiler.inputs[node.name].kind == "number"
    return any(_is_number(tiler, n) for n in node.all_input_nodes)


def _exchange_of(node: fx.Node) -> fx.Node | None:
    """The operator that puts halo rows beside a value's rows, and finds room for them there; None if there is none."""
    return next((u for u in node.users if facts(u).puts_beside is not None and u.args[0] is node), None)


def _room(exchange: fx.Node) -> tuple[Any, Any]:
    """The number of halo rows that an exchange or a join puts beside owned rows, and the dimension of rows."""
    first: Any = facts(exchange).puts_beside
    return exchange.args[first : first + 2]  # type: ignore[return-value]


def _result(node: fx.Node, work: Work, exchange: fx.Node | None, roots: list[fx.Node]) -> Result:
    if work.kind == "row":
        rows: Rows | None = rows_of(node)
        assert rows is not None
        return Store(rows.dim, rows.factor, exchange is not None)
    if work.kind == "reduce":
        return Reduce(node.meta[META].reduction)
    (access,) = accesses(node)
    base, before = node.args[0], continues(node)
    reuse = before is not None or is_fresh(base)  # type: ignore[arg-type]
    return Add(access.dim, reduction(node), not access.dense, reuse, roots.index(before) if before in roots else None)


def _row_bytes(program: Distributed, graph: fx.Graph, space: Space) -> float:
    """Bytes that the body holds for each row at its peak: values live at one time, of those that have rows."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    live, peak = 0.0, 0.0
    dies: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for used, node in last.items():
        dies[node].append(used)
    size: dict[fx.Node, float] = {}
    for node in graph.nodes:
        if node.op == "call_function" and META in node.meta:
            rows = rows_of(node)
            value = bytes_per_row(program, node)
            size[node] = value if rows is not None and rows.space == space and value < 2**40 else 0.0
            live += size[node]
        peak = max(peak, live)
        live -= sum(size.get(gone, 0.0) for gone in dies[node])
    return peak


def _attributes(module: fx.GraphModule) -> dict[str, Any]:
    return {str(n.target): getattr(module, str(n.target)) for n in module.graph.nodes if n.op == "get_attr"}
