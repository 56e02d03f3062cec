"""Let messages travel while a rank works on rows that need nothing of them.

    p = start("exchange", x, ...)        p = start("exchange", x, ...)
    h = wait(p, x)                       y = region(n, x, ..., only=(0, interior))                these read no halo row
    y = region(n, h, ...)           =>   h = wait(p, x)
                                         y = region(n, h, ..., only=(interior, n), so_far=y)

    y = region(n, ..., t)                y = region(n, ..., t, only=(interior, n))      only these add to halo rows of t
    p = start("reduce", t, ...)     =>   p = start("reduce", t, ...)
    z = wait(p, t)                       y = region(n, ..., t, only=(0, interior), so_far=y)
                                         z = wait(p, t)

Rows of a space whose pointers stay on the rank are interior; the runtime puts them first. What is computed on halo rows
between a message and the region goes with the message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ...ir import META, Halo, Placement, Tiled, copy_tiled, replace_tiled
from ...ir.operators import facts
from ...ir.writer import described, write
from ...rules.messages import message
from ...runtime.execution.tiles import Add, Region, taken
from ...runtime.operators.messages import start, wait

aten = torch.ops.aten


def overlap(program: Tiled) -> Tiled:
    """Return a tiled program whose messages travel while regions run over interior rows."""
    module = copy_tiled(program)
    work = _Overlapping(program, module)
    for region in [n for n in module.graph.nodes if n.op == "call_module"]:
        if work.interior(region) is not None and not work.wait_within(region):
            work.send_within(region)
    module.graph.eliminate_dead_code()  # results that are now taken of other calls
    return replace_tiled(program, module)


class _Overlapping:
    def __init__(self, program: Tiled, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self.inputs = {i.name: i for i in program.inputs}
        self.apart: set[fx.Node] = set()
        """Starts of messages that travel while other work is done."""

    def spec(self, call: fx.Node) -> Any:
        region = self.module.get_submodule(str(call.target))
        assert isinstance(region, Region)
        return region.spec

    def interior(self, call: fx.Node) -> fx.Node | None:
        """The number of interior rows of a region's space; None if no input has it."""
        return self._input("interior", self.spec(call).space)

    def _input(self, kind: str, space: str) -> fx.Node | None:
        names = [i.name for i in self.inputs.values() if i.kind == kind and str(i.space) == space]
        return next((n for n in self.graph.nodes if n.op == "placeholder" and n.name in names), None)

    def _is_cheap(self, node: fx.Node) -> bool:
        """True if a node works on halo rows at most, and is not a message."""
        if node.op == "call_module":
            return self._input("size", self.spec(node).space) is None and not node.kwargs
        return facts(node).crosses is None and node.target is not start and node.target is not wait

    def wait_within(self, region: fx.Node) -> bool:
        """Wait for messages that a region reads after its interior rows are done. True if there are such messages."""
        before = _until(region, self.graph.nodes)
        begun: list[fx.Node] = []
        late: set[fx.Node] = set()
        for begin in self._at_once(before, to_readers=True):
            (end,) = begin.users
            found = _dependents(end, before)
            if found.isdisjoint(region.all_input_nodes) or not all(self._is_cheap(n) for n in found - {end}):
                continue
            begun.append(begin)
            late |= found
        read = [n for n in region.all_input_nodes if n in late]
        instead = {n: owned for n in read if (owned := _joined(n)) is not None}
        if not begun or any(instead.get(n, n) in late for n in read):
            return False
        self._in_two(region, interior_first=True, instead=instead)
        self.apart.update(begun)
        for node in [n for n in before if n in late]:
            region.prepend(node)
        return True

    def _at_once(self, nodes: Iterable[fx.Node], to_readers: bool) -> list[fx.Node]:
        """The starts of messages that are waited for as soon as they have begun."""
        begun = [(n, m) for n in nodes if n not in self.apart and n.target is start and (m := message(n)) is not None]
        return [n for n, m in begun if m.to_readers is to_readers]

    def send_within(self, region: fx.Node) -> None:
        """Send the contributions of a region's other rows to halo rows, and then run over its interior rows."""
        after = list(self.graph.nodes)
        after = after[after.index(region) + 1 :]
        found: list[tuple[fx.Node, list[fx.Node]]] = []
        for begin in self._at_once(after, to_readers=False):
            before = _needed(begin.all_input_nodes, after)
            parts = [n for n in before if n.target is taken and n.args[0] is region]
            if parts and all(self._is_cheap(n) for n in before) and self._all_of_halo(parts, {begin, *before}):
                found.append((begin, [n for n in after if n in before]))
        if not found:
            return
        first = self._in_two(region, interior_first=False)
        early: dict[fx.Node, fx.Node] = {}
        for begin, needed in found:
            for node in [n for n in needed if n not in early]:  # two messages may need the same
                early[node] = node
                if node.target is taken and node.args[0] is region:
                    with self.graph.inserting_before(region):
                        early[node] = write(self.graph, taken, (first, *node.args[1:]), like=node)
                else:
                    region.prepend(node)
                    node.args = fx.map_arg(node.args, lambda n: early.get(n, n))
            region.prepend(begin)
            begin.args = fx.map_arg(begin.args, lambda n: early.get(n, n))
            self.apart.add(begin)

    def _all_of_halo(self, tables: Iterable[fx.Node], readers: set[fx.Node]) -> bool:
        """True if `readers` read only halo rows of tables that a region adds to."""
        return all(
            isinstance(self.spec(t.args[0]).results[t.args[1]], Add)  # type: ignore[arg-type,index]
            and all(self._is_of_halo(user, t) for user in t.users if user in readers)
            for t in tables
        )

    def _is_of_halo(self, user: fx.Node, table: fx.Node) -> bool:
        sent = message(user)
        if sent is not None:
            return sent.kind == "reduce" and sent.value is table
        place = table.meta.get(META)
        if user.target is not aten.slice.Tensor or not isinstance(place, Placement):
            return False
        _, dim, start, *_ = user.args
        halo = place.dims[dim]  # type: ignore[index]
        given = self.inputs.get(start.name) if isinstance(start, fx.Node) else None
        return (
            given is not None
            and given.kind == "size"
            and len(halo) == 1
            and isinstance(halo[0], Halo)
            and given.space == halo[0].space
        )

    def _in_two(self, region: fx.Node, interior_first: bool, instead: Any = None) -> fx.Node:
        """Run a region over some rows in a call of its own, before the call for the others; return the first call."""
        interior, rows = self.interior(region), region.args[0]
        parts = [(0, interior), (interior, rows)]
        if not interior_first:
            parts.reverse()
        with self.graph.inserting_before(region):
            first = self.graph.call_module(
                str(region.target), fx.map_arg(region.args, lambda n: (instead or {}).get(n, n)), {"only": parts[0]}
            )
        described(first, like=region)
        region.kwargs = {"only": parts[1], "so_far": first}
        return first


def _joined(node: fx.Node) -> fx.Node | None:
    """The owned rows beside which a node puts halo rows; None if it does something else."""
    if node.target is wait:
        sent = message(node.args[0])  # type: ignore[arg-type]
        return sent.value if sent is not None and sent.kind == "exchange" else None
    return node.args[0] if facts(node).puts_beside is not None else None  # type: ignore[return-value]


def _until(node: fx.Node, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    every = list(nodes)
    return every[: every.index(node)]


def _dependents(node: fx.Node, among: list[fx.Node]) -> set[fx.Node]:
    """The nodes of `among`, which are in order, that need `node`, and `node` itself."""
    found = {node}
    for each in among[among.index(node) + 1 :]:
        if not found.isdisjoint(each.all_input_nodes):
            found.add(each)
    return found


def _needed(nodes: Iterable[fx.Node], among: list[fx.Node]) -> set[fx.Node]:
    """The nodes of `among` that `nodes` need, and those of `nodes` that are in it."""
    inside, found, left = set(among), set[fx.Node](), list(nodes)
    while left:
        node = left.pop()
        if node in inside and node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found
