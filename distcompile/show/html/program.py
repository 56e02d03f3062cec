"""A program after each pass, as records."""

from __future__ import annotations

import functools
import linecache
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx

from ...ir import META, Distributed, Halo, Normal, Placed, Placement, Space, Split, Tiled
from ...ir.text import short
from ...ir.user_code import user_frame, user_place
from ...ir.writer import made_by
from ...passes import STAGES, name_of
from ...passes.spaces.place import placements
from ...predict.account import Collective, collective, scheduled
from ...rules.messages import message
from ...runtime.execution.tiles import Region
from ...runtime.operators.messages import start
from ..explain import where_rows_are
from ..printer import said_by_name, show_tensor
from .records import ONCE, Line, Operator, Pass, Program

AROUND = 3
"""Lines of code that are shown before and after an operator's own."""

STAGE_OF = {"capture": "capture"} | {name_of(p): stage.name for stage in STAGES for p in stage.passes}


def program(history: Sequence[tuple[str, Normal]]) -> Program:
    """A program, pass by pass.

    Args:
        history: the names of passes, ``capture`` first, and the program after each. The last one is tiled.
    """
    last = history[-1][1]
    assert isinstance(last, Tiled)
    lines: dict[str, Line] = {}
    passes = tuple(Pass(name, STAGE_OF[name], tuple(_operators(after, lines))) for name, after in history)
    shown = [*last.spaces, *last.halo_spaces]
    return Program(tuple((s.name, where_rows_are(last, s)) for s in shown), passes, lines)


def _operators(after: Normal, lines: dict[str, Line]) -> Iterator[Operator]:
    """All nodes of a program in the order in which they run: those of bodies where their region is first called."""
    size = _sizes(after)

    def shown(part: str, module: fx.GraphModule, node: fx.Node, crossing: Collective | None = None) -> Operator:
        return _operator(after, part, module, node, size, lines, crossing)

    if isinstance(after, Split):
        for node in _nodes(after.index_program):
            yield shown(ONCE, after.index_program, node)
    if not isinstance(after, Tiled):
        for node in _nodes(after.graph):
            crossing = collective(after, node) if isinstance(after, Placed) and META in node.meta else None
            yield shown("", after.graph, node, crossing)
        return
    crossing_at, seen = scheduled(after), set[str]()
    for node in _nodes(after.tiled):
        yield shown("", after.tiled, node, crossing_at.get(node))
        if node.op == "call_module" and node.target not in seen:
            seen.add(str(node.target))
            body = after.tiled.get_submodule(str(node.target))
            assert isinstance(body, Region)
            for inner in _nodes(body.graph_module):
                if inner.op != "placeholder":  # those are nodes of the graph around it
                    yield shown(str(node.target), body.graph_module, inner)


def _nodes(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op != "output"]


def _operator(
    after: Normal,
    part: str,
    module: fx.GraphModule,
    node: fx.Node,
    size: Callable[[Any], str],
    lines: dict[str, Line],
    crossing: Collective | None,
) -> Operator:
    value = getattr(module, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
    gives = show_tensor(value, node.meta.get(META), size)
    space = _space(after, node)
    if node.op == "call_module":
        body = module.get_submodule(str(node.target))
        assert isinstance(body, Region)
        gives, space = f"{body.spec.space}, level {body.spec.level}", body.spec.space
    named = {"placeholder": "input", "get_attr": "constant", "call_module": "region"}.get(node.op, short(node))
    sent = message(node)
    if sent is not None and node.target is start:
        named = f"start {sent.name}"
        gives = show_tensor(sent.value.meta["val"], sent.value.meta.get(META), size)
    if crossing is not None and crossing.space:
        thinned = after.thinned_spaces if isinstance(after, Distributed) else ()
        space = next((str(s.some_of) for s in thinned if s.name == crossing.space), crossing.space)
    arguments = [_shown(a) for a in node.args] + [f"{k}={_shown(v)}" for k, v in said_by_name(node)]
    return Operator(
        part,
        node.name,
        named,
        gives,
        space,
        made_by(node),
        _line(node, lines),
        ", ".join(arguments),
        tuple(n.name for n in node.all_input_nodes),
        *_crossing(crossing),
    )


def _crossing(found: Collective | None) -> tuple[str, int]:
    if found is None:
        return "", 0
    each = f"bytes a row of {found.space}" if found.space else "bytes in all"
    return f"{found.kind}: {found.row_bytes} {each}, {found.why}", found.row_bytes


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(v) for v in value)}]"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _space(after: Normal, node: fx.Node) -> str:
    """The first space whose rows a node has; empty if it is whole, or spaces are not known yet."""
    if META in node.meta:
        dims = [dim for p in placements(node.meta[META]) if isinstance(p, Placement) for dim in p.dims]
        return next((_named(f) for dim in dims for f in dim if isinstance(f, Space | Halo)), "")
    value = node.meta.get("val")
    if isinstance(after, Placed) and isinstance(value, torch.Tensor):
        return next((s.name for n in value.shape if (s := after.space_of(after.size(n)))), "")
    return ""


def _named(factor: Space | Halo) -> str:
    return factor.space.name if isinstance(factor, Halo) else factor.name


def _sizes(after: Normal) -> Callable[[Any], str]:
    """A function that gives the text of a size: of a space that is known, its name."""
    names = {s.symbol: sympy.Symbol(s.name) for s in after.spaces} if isinstance(after, Placed) else {}
    known: dict[Any, str] = {}

    def size(value: Any) -> str:
        if isinstance(value, int):
            return str(value)
        key = value.node.expr
        if key not in known:
            known[key] = str(after.size(value).xreplace(names))
        return known[key]

    return size


def _line(node: fx.Node, lines: dict[str, Line]) -> str:
    """The model's line that a node is for: its own, or that of a node near it."""
    near = [node, *node.users]
    if node.target is start:  # a wait has no line of its own, either
        near += [*(n for waited in node.users for n in waited.users), *node.all_input_nodes]
    theirs = next((n for n in near if user_frame(n)[0]), None)
    if theirs is None:
        return ""
    short_place, (frame, code) = user_place(theirs), user_frame(theirs)
    found = re.match(r'File "(.*)", line (\d+)', frame)
    assert found is not None
    file, number = found.group(1), int(found.group(2))
    if short_place in lines and lines[short_place].file != _from_import_path(file):
        short_place = f"{_from_import_path(file)}:{number}"  # another file of the same name
    if short_place not in lines:
        read = [(n, linecache.getline(file, n)) for n in range(max(1, number - AROUND), number + AROUND + 1)]
        there = [(n, text) for n, text in read if text]  # none beyond the end, and none of code that is in no file
        code = textwrap.dedent("".join(text for _, text in there)) or code
        shown = zip([n for n, _ in there] or [number], code.splitlines(), strict=False)
        lines[short_place] = Line(_from_import_path(file), number, tuple(shown))
    return short_place


@functools.cache
def _from_import_path(file: str) -> str:
    """A file's path below the folder that it is imported from."""
    above = [Path(folder) for folder in sys.path if folder and Path(file).is_relative_to(folder)]
    folder = max(above, key=lambda p: len(p.parts), default=None)
    return str(Path(file).relative_to(folder)) if folder is not None else file
