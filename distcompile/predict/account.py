"""The costs of a program, from shapes alone: bytes of every collective, peak memory, work for each row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn

from ..ir import META, WHOLE_RULE, Halo, Placed, Placement, Space, Tiled, placement
from ..ir.operators import OPERATORS, Crossing, facts
from ..ir.text import short, short_name
from ..ir.user_code import user_place
from ..passes.schedule.storage import storage
from ..passes.spaces.place import WHY, placements
from ..rules.cost import bytes_per_row, product_flops, product_length
from ..rules.levels import rows_of
from ..rules.messages import message
from ..runtime.execution.grouping import grouped
from ..runtime.execution.in_step import InStep
from ..runtime.execution.tiles import Reduce, Region
from ..runtime.operators.messages import wait

_KINDS: dict[str, Crossing] = {short_name(t): row.crosses for t, row in OPERATORS.items() if row.crosses is not None}
"""The data that ranks send each other, by the name of the operator."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    kind: str
    space: str
    """The space whose rows cross; empty for sums over ranks."""
    row_bytes: int
    """Bytes per row (halo ops) or in all (all_reduce)."""
    why: str
    """The user's lines that need it."""

    @property
    def to_owners(self) -> bool:
        """True if rows go from the ranks that read them to their owners."""
        return _KINDS[self.kind].to == "owners"

    @property
    def to_all(self) -> bool:
        """True if every rank gets the rows of all others, not only those of its halo."""
        return _KINDS[self.kind].to == "all"

    def rows(self, owned: Mapping[str, int], halo: Mapping[str, int], sizes: Mapping[str, int]) -> int:
        """The number of rows that a rank receives, given its owned rows and its halo rows of every space."""
        return sizes[self.space] - owned[self.space] if self.to_all else halo[self.space]


def collectives(program: Placed) -> list[Collective]:
    """Every collective of `program`, in order."""
    return [found for node in program.graph.graph.nodes if (found := collective(program, node)) is not None]


def collective(program: Placed, node: fx.Node) -> Collective | None:
    """The collective that an operator is; None for other operators."""
    crossing = facts(node).crosses
    if crossing is None:
        return None
    value = node.meta["val"]
    operand: Any = node.args[0]
    if crossing.dim is None:
        summed: list[fx.Node] = [operand] if isinstance(operand, fx.Node) else operand
        lines = dict.fromkeys(user_place(n) for n in summed)
        size = sum(_bytes(program, n, {}) for n in summed)
        return Collective(short(node), "", size, "summed at " + ", ".join(lines))
    dim: Any = node.args[crossing.dim]
    widths = [n for i, n in enumerate(program.shape(node)) if i != dim]
    row = math.prod(int(n) for n in widths if n.is_Integer) * value.element_size()
    space = next(i for i in program.inputs if i.name == node.args[1].name).space  # type: ignore[union-attr]
    readers = dict.fromkeys(user_place(u) for u in node.users)
    why = "added at " + user_place(operand) if crossing.to == "owners" else "read at " + ", ".join(readers)
    return Collective(short(node), str(space), row, why)


def scheduled(program: Tiled) -> dict[fx.Node, Collective]:
    """The collectives of a tiled graph, by the operators that send or start them."""
    left: dict[tuple[str, str], list[Collective]] = {}
    for c in collectives(program):
        left.setdefault((c.kind, c.space), []).append(c)
    found = {}
    for node in program.tiled.graph.nodes:
        sent = message(node)
        if sent is not None:
            found[node] = left[sent.name, str(sent.space(program.inputs))].pop(0)
        elif (here := collective(program, node)) is not None:
            found[node] = here
    return found


@dataclasses.dataclass(frozen=True)
class RowWork:
    """The work of a program's operators for each row of a space in one evaluation."""

    moved: float
    """Bytes of the operands and results that have rows."""
    flops: float
    """Floating-point operations of matrix products."""


NOTHING = RowWork(0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of an evaluation on a rank, by rows."""

    rows: dict[str, RowWork]
    """The work for each row, by space."""
    operators: int
    """Calls of operators, if each region has one block."""
    messages: tuple[tuple[Collective, ...], ...]
    """Halo exchanges and reductions; those of a tuple leave as one message."""
    sums: tuple[Collective, ...]
    """Sums over ranks."""
    results: tuple[tuple[str, int], ...]
    """Results that are put together on every rank: the space of their rows, and bytes of each."""


def work(program: Tiled, wanted: Collection[int] | None = None) -> Work:
    """The work of an evaluation of a tiled program.

    Args:
        program: the program.
        wanted: the places of the tensors of its result that are put together on every rank; None for all.
    """
    rows = {s.name: RowWork(0.0, 0.0) for s in program.row_spaces if s.sharded}
    operators = sum(n.op == "call_function" and n.target is not wait for n in program.tiled.graph.nodes)
    for region in program.tiled.children():
        assert isinstance(region, Region)
        for node in region.graph_module.graph.nodes:
            if node.op == "call_function":
                operators += 1
                found = rows.get(region.spec.space, RowWork(0.0, 0.0))
                moved = sum(_row(program, n, region.spec.space) for n in (node, *node.all_input_nodes))
                rows[region.spec.space] = RowWork(
                    found.moved + (0.0 if facts(node).view else moved), found.flops + product_flops(program, node)
                )
    sums = tuple(c for c in collectives(program) if not c.space)
    return Work(rows, operators, tuple(_messages(program)), sums, tuple(_results(program, wanted)))


def _messages(program: Tiled) -> Iterator[tuple[Collective, ...]]:
    """Halo exchanges and reductions by the message in which they leave."""
    shared: dict[Any, list[Collective]] = {}
    for node, found in scheduled(program).items():
        if message(node) is not None:
            shared.setdefault(node.kwargs.get("bucket", node), []).append(found)
    return (tuple(message) for message in shared.values())


def _row(program: Tiled, node: fx.Node, space: str) -> float:
    """Bytes of a row of a value in a region's body; 0 for a value that every block reads whole."""
    found = rows_of(node) if META in node.meta else None
    size = bytes_per_row(program, node) if found is not None and found.space.name == space else 0.0
    return size if math.isfinite(size) else 0.0


def _results(program: Tiled, wanted: Collection[int] | None) -> Iterator[tuple[str, int]]:
    """The values that are put together on every rank: results, and inputs of stretches that run whole."""
    for c in collectives(program):
        if c.to_all:
            yield c.space, c.row_bytes
    (output,) = [n for n in program.graph.graph.nodes if n.op == "output"]
    places = range(len(program.outputs)) if wanted is None else wanted
    chosen = {program.outputs[at].position for at in places if program.outputs[at].source == "graph"}
    for node in [n for at, n in enumerate(output.args[0]) if at in chosen]:
        found = placement(node) if isinstance(node, fx.Node) and META in node.meta else None
        if isinstance(found, Placement):
            for space in [f for dim in found.dims for f in dim if isinstance(f, Space)]:
                yield space.name, int(bytes_per_row(program, node))


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Operators that no rule divides, and those that depend on them. Every rank runs them on all rows."""

    operator: str
    """The first operator."""
    why: str
    line: str
    """The user's line."""
    operators: int
    work: RowWork
    """The work of all of them together."""


def stretches(program: Tiled, sizes: Mapping[str, int] | None = None) -> list[Stretch]:
    """The stretches of a program that run whole on every rank.

    Args:
        program: a program with placements.
        sizes: rows of every space; of the example if None.
    """
    known = _of_all_rows(program, sizes)
    members: dict[fx.Node, list[fx.Node]] = {}
    first: dict[fx.Node, fx.Node] = {}
    for node in program.graph.graph.nodes:
        if any(p.rule == WHOLE_RULE for p in placements(node.meta.get(META, ()))):
            before = next((first[n] for n in node.all_input_nodes if n in first), node)
            first[node] = before
            members.setdefault(before, []).append(node)
    return [_stretch(program, nodes, known) for nodes in members.values()]


def _stretch(program: Tiled, nodes: list[fx.Node], known: Mapping[sympy.Symbol, int]) -> Stretch:
    begin = next((n for n in nodes if WHY in n.meta), nodes[0])
    moved = sum(_bytes(program, n, known) for node in nodes for n in (node, *node.all_input_nodes))
    flops = sum(_product(program, node, known) for node in nodes)
    return Stretch(short(begin), begin.meta.get(WHY, ""), user_place(begin), len(nodes), RowWork(moved, flops))


def _of_all_rows(program: Tiled, sizes: Mapping[str, int] | None) -> dict[sympy.Symbol, int]:
    """The sizes of all spaces that every rank holds whole."""
    hint = program.captured.hint
    whole = [s for s in program.spaces if not s.sharded]
    if sizes is not None:
        return {s.symbol: sizes[s.name] for s in whole}
    return {s.symbol: hint((s.all_of or s).symbol) for s in whole}


def _product(program: Tiled, node: fx.Node, known: Mapping[sympy.Symbol, int]) -> float:
    """Floating-point operations of a matrix product over all rows; 0 for other operators."""
    inner = product_length(program, node)
    if inner is None:
        return 0.0
    length = inner.xreplace({k: sympy.Integer(v) for k, v in known.items()})
    elements = _bytes(program, node, known) / node.meta["val"].element_size()
    return 2 * (int(length) if length.is_Integer else 1) * elements


def peak_bytes(program: Tiled, sizes: Mapping[str, int], halos: Mapping[str, int]) -> int:
    """Bytes of live tensors at the peak of one rank's run of the graph, inputs included, parameters not.

    Arguments as of `held_bytes`.
    """
    return max((held.tables + held.block for held in held_bytes(program, sizes, halos)), default=0)


@dataclasses.dataclass(frozen=True)
class Held:
    """The bytes that a rank holds while one step of the graph runs."""

    step: fx.Node
    tables: int
    """Inputs, and what exists for all rows."""
    block: int
    """What exists for a block of rows on each thread; zero if the step is no region."""


def held_bytes(program: Tiled, sizes: Mapping[str, int], halos: Mapping[str, int]) -> Iterator[Held]:
    """Bytes of live tensors during each step of one rank's run of the graph, inputs included, parameters not.

    A region holds its inputs and results whole and the values of its body for one block of rows a thread.

    Args:
        program: a tiled program.
        sizes: owned rows of every space.
        halos: halo rows of every sharded space.
    """
    rows_here = {s.name: halos[s.halo_of.name] if s.halo_of else sizes[s.name] for s in program.row_spaces}
    known = {s.symbol: rows_here[s.name] for s in program.row_spaces}
    steps = grouped(program)
    nodes = list(steps.graph.nodes)
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        for used in node.all_input_nodes:
            last[storage(used)] = i
    dies: dict[int, list[fx.Node]] = {}
    for node, i in last.items():
        dies.setdefault(i, []).append(node)
    live = 0
    held: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        block = 0
        if node.op == "call_module":
            called = steps.get_submodule(str(node.target))
            block = _block(called, rows_here)
            # A sum over rows exists in double precision too, and for the block of each thread.
            block += (2 + torch.get_num_threads()) * sum(
                _bytes(program, n, known, halos) for n in _summed(called, node)
            )
            made = [n for n in _results_of(node) if storage(n) is n]  # they exist from the first block on
        else:
            made = [node] if storage(node) is node and not _is_result(node) else []
        for new in made:
            if new.op in ("placeholder", "call_function"):
                held[new] = _bytes(program, new, known, halos)
                live += held[new]
        yield Held(node, live, block)
        for gone in dies.get(i, ()):
            if gone.op != "placeholder":  # inputs stay with the caller
                live -= held.get(gone, 0)


def untiled_bytes(program: Tiled, sizes: Mapping[str, int]) -> int:
    """Bytes of all values that have rows, which autograd may keep of an evaluation of so many rows of every space."""
    known = {s.symbol: sizes[s.halo_of.name if s.halo_of else s.name] for s in program.row_spaces}
    nodes = [n for n in program.differentiated.graph.nodes if n.op == "call_function" and storage(n) is n]
    return sum(_bytes(program, n, known) for n in nodes)


def _block(called: nn.Module, rows_here: Mapping[str, int]) -> int:
    """Bytes of the values that exist for a block of rows, or for a stretch of a group, on all threads."""
    if isinstance(called, InStep):
        return called.stretch_bytes(rows_here)
    assert isinstance(called, Region)
    rows = rows_here[called.spec.space]
    threads, length = called.schedule(rows)
    return int(min(threads * length, rows) * called.spec.row_bytes)


def _summed(called: nn.Module, call: fx.Node) -> list[fx.Node]:
    """The results of a region, or of a group, that are summed over its rows: gradients of weights."""
    members = [(m.region, m.results) for m in called.members] if isinstance(called, InStep) else []
    if isinstance(called, Region):
        members = [(called, tuple(range(len(called.spec.results))))]
    sums = {at for region, results in members for at, r in zip(results, region.spec.results, strict=True)
            if isinstance(r, Reduce)}  # fmt: skip
    return [n for n in _results_of(call) if n.args[1] in sums]


def _results_of(call: fx.Node) -> list[fx.Node]:
    """The results of a region that exist from this call on."""
    if "so_far" in call.kwargs:
        return []
    goes_on = [n for n in call.users if n.op == "call_module"]
    return list((goes_on[0] if goes_on else call).users)


def _is_result(node: fx.Node) -> bool:
    """True if a node is one result of a region."""
    return any(n.op == "call_module" for n in node.all_input_nodes)


def _bytes(
    program: Placed, node: fx.Node, known: Mapping[sympy.Symbol, int], halos: Mapping[str, int] | None = None
) -> int:
    values = node.meta.get("val")
    places = node.meta.get(META)
    values = values if isinstance(values, list | tuple) else [values]
    places = places if isinstance(places, tuple) else (places,) * len(values)
    total = 0
    for value, place in zip(values, places, strict=True):
        if not isinstance(value, torch.Tensor):
            continue
        size = value.element_size()
        for i, n in enumerate(value.shape):
            rows = program.size(n).xreplace({k: sympy.Integer(v) for k, v in known.items()})
            size *= int(rows) if rows.is_Integer else 1
            if isinstance(place, Placement) and halos and i < len(place.dims):
                for factor in place.dims[i]:
                    if isinstance(factor, Halo):
                        owned = int(rows) or 1
                        size = size // owned * (int(rows) + halos[factor.space.name])
        total += size
    return total
