"""Find the groups of regions of a tiled program that run in step, and write each as one call.

y = region_3(edges ...)                 z = group_1(...)    # region_3 and region_4 on a stretch of atoms at a time
z = region_4(atoms, y, ...)     =>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...ir import Tiled, owner_pointers
from ...ir.graphs import anchor, copy_node, graph_module
from ...ir.operators import facts, filled_with, pointer_root
from ...ir.writer import described, write
from .in_step import InStep, Member, Passed, Sums
from .tiles import Add, Region, RegionSpec, Store, taken

aten = torch.ops.aten


def grouped(program: Tiled) -> fx.GraphModule:
    """The tiled graph of a program, with groups of regions as calls that run them in step."""
    if all(r.spec.group is None for r in program.tiled.children() if isinstance(r, Region)):
        return program.tiled
    return _Grouping(program).module()


def in_step_with(program: Tiled) -> set[fx.Node]:
    """Calls of regions that run in step with the call before them."""
    return {call for calls in _Grouping(program).calls.values() for call in calls[1:]}


class _Grouping:
    def __init__(self, program: Tiled) -> None:
        self.program = program
        self.owners = owner_pointers(program)
        self.nodes = list(program.tiled.graph.nodes)
        self.calls: dict[int, list[fx.Node]] = {}
        in_turn = set[int | None]()
        for node in self.nodes:
            if node.op == "call_module":
                spec = self._spec(node)
                in_turn |= {spec.group} if spec.in_turn else set()
                if spec.group is not None and self._follows(spec.space):
                    self.calls.setdefault(spec.group, []).append(node)
        for group, calls in list(self.calls.items()):
            found = {self._spec(c).space for c in calls}
            if len(found) == 1 or group in in_turn or program.spaces[0].name not in found or not self._can_pass(calls):
                del self.calls[group]
        self.group_of = {call: g for g, calls in self.calls.items() for call in calls}
        self.groups: dict[str, InStep] = {}
        self.env: dict[fx.Node, fx.Node] = {}
        self.graph = fx.Graph()

    def module(self) -> fx.GraphModule:
        """The graph with groups as calls."""
        for node in self.nodes:
            if node not in self.env and not self._is_passed(node):
                self._copy(node)
        named = [str(n.target) for n in self.nodes if n.op in ("get_attr", "call_module")]
        held = {name: getattr(self.program.tiled, name) for name in named}
        found = graph_module({**held, **self.groups}, self.graph)
        found.graph.eliminate_dead_code()
        found.graph.lint()
        return found

    def _spec(self, call: fx.Node) -> RegionSpec:
        region = self.program.tiled.get_submodule(str(call.target))
        assert isinstance(region, Region)
        return region.spec

    def _follows(self, space: str) -> bool:
        """True if each row of a space follows one atom."""
        while space in self.owners:
            space = self.owners[space].target.name
        return space == self.program.spaces[0].name

    def _is_passed(self, node: fx.Node) -> bool:
        """True for calls of a group and what is taken of them: these are copied with the group."""
        return node in self.group_of or (self._result(node) is not None)

    def _can_pass(self, calls: list[fx.Node]) -> bool:
        """True if what regions of a group need of each other are rows, or sums at rows that others follow."""
        parts = {call: _Part(self, call) for call in calls}
        for node in [n for call in calls for n in call.all_input_nodes]:
            shown = node.args[0] if node.target is aten.slice.Tensor else node
            if not isinstance(shown, fx.Node) or shown.target is not taken or shown.args[0] not in parts:
                continue
            call, j, *_ = shown.args
            if any(shown in p.more for p in parts.values()):  # two regions add to one table
                return False
            part = parts[call]  # type: ignore[index]
            if not (isinstance(part.region.spec.results[j], Store) or j in part.near_results):  # type: ignore[call-overload,index]
                return False
        return True

    def _result(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The call of a group, and the result of it, that a node is; owned rows of one with room included."""
        if node.target is aten.slice.Tensor and node.args[1:3] == (0, 0):
            node = node.args[0]  # type: ignore[assignment]
        if node.target is taken and node.args[0] in self.group_of:
            return node.args[0], node.args[1]  # type: ignore[return-value]
        return None

    def _copy(self, node: fx.Node) -> fx.Node:
        """Add a node, and before it what it needs that was not added yet."""
        if node in self.env:
            return self.env[node]
        found = self._result(node)
        if found is not None and node.target is taken:
            self._group(self.group_of[found[0]])
            return self.env[node]
        self.env[node] = copy_node(self.graph, node, self._copy)
        return self.env[node]

    def _group(self, number: int) -> None:
        """Add the call of a group, and its results."""
        calls = self.calls[number]
        made = {n: found for n in self.nodes if (found := self._result(n)) is not None and found[0] in calls}
        parts = [_Part(self, call) for call in calls]
        lasting = {f for n, f in made.items() if any(user not in calls and user not in made for user in n.users)}
        for part in parts:
            for j, result in enumerate(part.region.spec.results):
                if not isinstance(result, Store) and not part.can_be_passed(j):
                    lasting.add((part.call, j))
        for part in parts:
            for j, result in enumerate(part.region.spec.results):
                if isinstance(result, Add) and result.after is not None and (part.call, j) in lasting:
                    lasting.add((part.call, result.after))
        arguments = _Arguments(made, calls)
        positions: dict[tuple[fx.Node, int], int] = {}
        members = []
        for part in parts:
            more: list[int | Sums | None] = []
            for j, (result, given) in enumerate(zip(part.region.spec.results, part.more, strict=True)):
                if (part.call, j) in lasting:
                    positions[part.call, j] = len(positions)
                is_sum = isinstance(result, Add) and (part.call, j) not in lasting and given is not None
                more.append(_sums(given) if is_sum else None if given is None else arguments.position(given))
            inputs = [
                Passed(calls.index(made[source][0]), made[source][1])
                if isinstance(source, fx.Node) and source in made
                else arguments.position(source)
                for source in part.inputs
            ]
            results = tuple(positions.get((part.call, j)) for j in range(len(more)))
            near = frozenset(part.near), frozenset(part.pointers)
            rows = arguments.position(part.call.args[0])
            added = frozenset(part.at_followed), frozenset(part.near_results)
            members.append(Member(part.region, rows, tuple(inputs), *near, results, tuple(more), *added))
        follows: dict[str, tuple[int, str]] = {}
        for part in parts:
            space = part.region.spec.space
            while space in self.owners:
                pointer = self.owners[space]
                follows[space] = arguments.position(self._input(pointer.name)), pointer.target.name
                space = pointer.target.name
        atoms = self.program.spaces[0].name
        rows = next(m.rows for m, part in zip(members, parts, strict=True) if part.region.spec.space == atoms)
        plain = arguments.plain(self.program.tiled, positions)
        name = f"group_{number}"
        self.groups[name] = InStep(tuple(members), rows, follows, plain)
        given = [self._copy(n) if isinstance(n, fx.Node) else n for n in arguments.nodes]
        call = described(self.graph.call_module(name, tuple(given)), value=None)
        for node, where in made.items():
            if node.target is taken and where in positions:
                rest = tuple(self._copy(n) for n in node.args[2:])
                self.env[node] = write(self.graph, taken, (call, positions[where], *rest), like=node)
        for node in made:
            if node.target is not taken and made[node] in positions:
                self.env[node] = copy_node(self.graph, node, self._copy)

    def _input(self, name: str) -> fx.Node:
        return next(n for n in self.nodes if n.op == "placeholder" and n.name == name)


class _Arguments:
    """The arguments of a group, and its regions one after the other as a function of them."""

    def __init__(self, made: Mapping[fx.Node, tuple[fx.Node, int]], calls: Sequence[fx.Node]) -> None:
        self.made, self.calls = made, calls
        self.nodes: list[fx.Node] = []
        self._graph = fx.Graph()
        self._end = self._graph.create_node("call_function", anchor)
        self._copies: dict[fx.Node, fx.Node] = {}

    def position(self, node: Any) -> int:
        """The position of an argument, which is added if it is new."""
        if node not in self.nodes:
            self.nodes.append(node)
            with self._graph.inserting_before(self._end):
                self._copies[node] = self._graph.placeholder(f"argument_{len(self.nodes)}")
        return self.nodes.index(node)

    def plain(self, tiled: fx.GraphModule, positions: Mapping[tuple[fx.Node, int], int]) -> fx.GraphModule:
        """The regions one after the other."""
        for call in self.calls:
            for node in call.all_input_nodes:
                self._copied(node)
            self._copied(call)
        results = [write(self._graph, taken, (self._copies[call], j), value=None) for call, j in positions]
        self._graph.erase_node(self._end)
        self._graph.output(tuple(results))
        regions = {str(c.target): tiled.get_submodule(str(c.target)) for c in self.calls}
        return graph_module(regions, self._graph)

    def _copied(self, node: fx.Node) -> fx.Node:
        if node not in self._copies:
            if node in self.made or node in self.calls or filled_with(node) is not None:
                self._copies[node] = copy_node(self._graph, node, self._copied)
            else:
                self.position(node)
        return self._copies[node]


class _Part:
    """The call of a region that may run in step."""

    def __init__(self, grouping: _Grouping, call: fx.Node) -> None:
        self.call = call
        self.region: Region = grouping.program.tiled.get_submodule(str(call.target))  # type: ignore[assignment]
        spec = self.region.spec
        self.inputs: tuple[Any, ...] = call.args[1 : 1 + len(spec.inputs)]
        rest = iter(call.args[1 + len(spec.inputs) :])
        rooms = [next(rest) if isinstance(r, Store) and r.room else None for r in spec.results]
        tables = [next(rest) if isinstance(r, Add) and r.after is None else None for r in spec.results]
        self.more: list[Any] = [room if room is not None else table for room, table in zip(rooms, tables, strict=True)]
        nodes = list(self.region.graph_module.graph.nodes)
        names = {n: k for k, n in enumerate([n for n in nodes if n.op == "placeholder"][1:])}
        pointer = grouping.owners.get(spec.space)
        self.pointers = {
            k
            for k, source in enumerate(self.inputs)
            if pointer is not None and isinstance(source, fx.Node) and source.name == pointer.name
        }
        self.near: set[int] = set()
        for node in nodes:
            row = facts(node).rows
            if row is not None and row.kind == "gather" and node.args[row.table] in names:
                index = node.args[row.index]
                indices = [i for i in index if i is not None] if row.several else [index]
                if any(names.get(pointer_root(i)) in self.pointers for i in indices):
                    self.near.add(names[node.args[row.table]])
        added: dict[int, dict[int, bool]] = {}
        first: dict[int, int] = {}
        outputs = iter(nodes[-1].args[0])
        for j, result in enumerate(spec.results):
            value = next(outputs)
            if isinstance(result, Add):
                next(outputs)
                first[j] = j if result.after is None else first[result.after]
                added.setdefault(first[j], {})[j] = names.get(pointer_root(value)) in self.pointers
        self.at_followed = {j for adds in added.values() for j, near in adds.items() if near}
        self.near_results = {
            j
            for adds in added.values()
            if all(adds.values())
            for j in adds
            if spec.results[j].dim == 0  # type: ignore[union-attr]
        }

    def can_be_passed(self, j: int) -> bool:
        """True if a result may be a table that exists for a stretch at a time."""
        result = self.region.spec.results[j]
        if j not in self.near_results or not isinstance(result, Add):
            return False
        if result.after is not None:
            return self.can_be_passed(result.after)
        return _sums(self.more[j]) is not None


def _sums(table: fx.Node) -> Sums | None:
    """The table that a node makes anew; None if it does something else."""
    fill, value = filled_with(table), table.meta.get("val")
    if not isinstance(fill, int | float) or not isinstance(value, Tensor):
        return None
    shape = tuple(value.shape[1:])
    return Sums(fill, shape, value.dtype, value.device) if all(isinstance(n, int) for n in shape) else None
