"""Tell a user what was found in a model, what will be communicated, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import fx

from ..ir import Space, Tiled
from ..ir.operators import facts
from ..ir.text import short
from ..ir.user_code import user_frame, user_place
from ..ir.writer import made_by
from ..predict.account import Collective, collectives, stretches
from ..rules.messages import message
from ..runtime.execution.grouping import in_step_with
from ..runtime.execution.kernels import Kernel
from ..runtime.execution.tiles import Region
from ..runtime.operators.messages import start, wait
from .printer import show_type


def explain(program: Tiled, detail: bool = False) -> str:
    """Spaces, pointers and every collective of a program, as text; with `detail`, every operator, too."""
    operators, hoisted = (
        sum(n.op == "call_function" for n in module.graph.nodes) for module in (program.graph, program.index_program)
    )
    crossing = collectives(program)
    lines = [
        f"{operators} operators on every rank; {hoisted} integer operators once on the whole graph",
        *("", "Index spaces", *_spaces(program)),
        *("", "Pointers", *_pointers(program)),
        *("", "Collectives of one evaluation", *_collectives(crossing)),
        *_whole(program),
        *_radial(program),
        *_narrowest(program, crossing),
        *("", "Regions, which run block by block, and messages (>>), in order", *_schedule(program)),
    ]
    if detail:
        lines += ["", "Operators, what they give, the pass that made them, and the line that they are for"]
        lines += _operators(program)
    return "\n".join(lines) + "\n"


def _spaces(program: Tiled) -> Iterator[str]:
    for space in program.spaces:
        yield f"  {space.name:<8} {where_rows_are(program, space)}"


def where_rows_are(program: Tiled, space: Space) -> str:
    """How the rows of a space are divided, in words."""
    owner = next((p for p in program.pointers if p.source == space and p.owner), None)
    if space.halo_of is not None:
        return f"rows of {space.halo_of} that a rank reads of others"
    if not space.sharded:
        return "whole on every rank"
    if space.blocks:
        return f"rows of {', then of '.join(b.name for b in space.blocks)}"
    if owner is not None:
        return f"on the rank that owns the row of {owner.target} in {_label(program, owner.input)}"
    return "divided among ranks"


def _pointers(program: Tiled) -> Iterator[str]:
    for p in program.pointers:
        how = "stays on the rank" if not p.leaves_rank else "may leave the rank"
        line = f"  {p.name:<20} {p.source} -> {p.target:<8} {how:<18} {_label(program, p.input)}"
        yield line.replace("  ->", " ->")


def _collectives(crossing: list[Collective]) -> list[str]:
    lines = [
        f"  {c.kind:<13} {c.space:<8} {c.row_bytes:>7} bytes{'/row' if c.space else '    '}   {c.why}" for c in crossing
    ]
    return lines or ["  none"]


def _narrowest(program: Tiled, crossing: list[Collective]) -> list[str]:
    """Bytes that cross, beside the least that may."""
    if not program.narrowest:
        return []
    lines = ["", "Bytes that cross for each halo row, and the least that may: all once, narrowest, were work free"]
    for name, least in program.narrowest:
        here = {name, *(s.name for s in program.thinned_spaces if s.some_of is not None and s.some_of.name == name)}
        found = sum(c.row_bytes for c in crossing if c.space in here and not c.to_all)
        lines.append(f"  {name:<8} {found:>7} {least:>7}")
    return lines


def _operators(program: Tiled) -> Iterator[str]:
    for node in program.graph.graph.nodes:
        if node.op == "call_function":
            yield f"  {short(node):<28} {show_type(program, node):<28} {made_by(node):<18} {_line(node)}".rstrip()


def _line(node: fx.Node) -> str:
    """The model's line that an operator is for: its own line, or that of an operator that reads it."""
    return next((user_place(n) for n in (node, *node.users) if user_frame(n)[0]), "")


def _whole(program: Tiled) -> list[str]:
    """The stretches that run on all rows on every rank, with their cost."""
    found = stretches(program)
    lines = ["", "Whole on every rank, as no rule divides it; bytes and products of the example"] if found else []
    for s in found:
        cost = f"{s.work.moved:.3g} bytes moved, {s.work.flops:.3g} operations of products"
        lines += [f"  {s.operator}: {s.why}", f"    {s.line}", f"    {s.operators} operators, {cost}"]
    return lines


def _radial(program: Tiled) -> list[str]:
    """The functions of one number a row that are looked up in tables, and those that are not."""
    lines = (
        ["", "Radial functions in tables; errors relative to the largest value and slope"] if program.tabulated else []
    )
    for entry in program.tabulated:
        until = f"{entry.high:.6g}, constant from there on" if entry.ends else f"{entry.high:.6g}"
        lines.append(f"  of {entry.line}, from {entry.low:.6g} to {until}")
        lines += [
            f"    {t.functions:>6} functions of {t.line}: {t.intervals} intervals, {t.nbytes / 2**20:.1f} MB, "
            f"error {t.error:.1e}"
            for t in entry.tables
        ]
    if program.untabulated:
        lines += ["", "Radial functions that are computed, and why", *(f"  {why}" for why in program.untabulated)]
    return lines


def _schedule(program: Tiled) -> Iterator[str]:
    """The steps of a rank, one after the other."""
    tiled = program.tiled
    width = max((len(r.spec.space) for r in tiled.children() if isinstance(r, Region)), default=0)
    under_way = _under_way(tiled)
    together = in_step_with(program)
    started: list[fx.Node] = []
    for node in tiled.graph.nodes:
        sent = message(node)
        if node.op == "call_module":
            region = tiled.get_submodule(str(node.target))
            assert isinstance(region, Region)
            spec = region.spec
            operators = sum(n.op == "call_function" for n in region.graph_module.graph.nodes)
            yield (
                f"  {spec.space:<{width}} level {spec.level:<3} {operators:>5} operators, "
                f"blocks of {region.block:>8} rows, {spec.row_bytes:>8.0f} bytes/row{_how(region)}{_which_rows(node)}"
                f"{', in step with the one before' if node in together else ''}"
            )
        elif node.target is wait:
            if node.args[0] in under_way:
                yield f"  >> wait for {started.index(node.args[0]) + 1}"
        elif sent is not None and node in under_way:
            started.append(node)
            shared = "bucket" in node.kwargs and started[:-1] and node.kwargs == started[-2].kwargs
            joined = f", in one message with {len(started) - 1}" if shared else ""
            yield f"  >> {sent.name}_start {len(started)}{joined}"
        elif sent is not None:
            yield f"  >> {sent.name}"
        elif facts(node).crosses is not None:
            yield f"  >> {short(node)}"


def _under_way(tiled: fx.GraphModule) -> set[fx.Node]:
    """The starts of messages that share a bucket, or travel while a region runs."""
    found, begun = set(), set[fx.Node]()
    for node in tiled.graph.nodes:
        if node.op == "call_module":
            found |= begun
        elif node.target is start:
            begun.add(node)
            found |= {node} if "bucket" in node.kwargs else set()
        elif node.target is wait:
            begun.discard(node.args[0])
    return found


def code(program: Tiled) -> str:
    """What runs the regions of a program, in a few words."""
    found = Counter(code_of(region) for region in program.tiled.children())  # type: ignore[arg-type]
    total = sum(found.values())
    return ", ".join(f"{kind}: {n} of {total} regions" for kind, n in found.most_common()) or "operators"


def _how(region: Region) -> str:
    """A note on the code that a region runs; empty if its operators run one by one."""
    return "" if region.compiled is None else f", {code_of(region)}"


def code_of(region: Region) -> str:
    """What runs a region, in a word."""
    if region.compiled is None:
        return "operators"
    return "kernel" if isinstance(region.compiled, Kernel) else "Inductor's code"


def _which_rows(call: fx.Node) -> str:
    """A note on the rows of a region that runs over some rows only, around a message; empty for other regions."""
    if "only" not in call.kwargs:
        return ""
    first: Any = call.kwargs["only"]
    return ", interior rows" if first[0] == 0 else ", the other rows"


def _label(program: Tiled, position: int) -> str:
    return program.inputs[position].label
