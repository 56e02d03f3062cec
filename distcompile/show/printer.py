"""A program as canonical text: the same for the same program, short enough for a person to review."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir import META, Placed, Placement
from ..ir.operators import facts
from ..ir.text import DTYPES, Names, short


def show_program(program: Placed) -> str:
    """The spaces, pointers, inputs and operators of `program`, collectives marked by ``>>``."""
    lines = ["spaces"]
    lines += [f"  {s.name}{'' if s.sharded else ' (on every rank)'}" for s in program.spaces]
    lines += ["pointers"]
    for p in program.pointers:
        role = " (owner)" if p.owner else " (rows)" if p.identity else ""
        lines.append(f"  {p.name}: {p.source} -> {p.target}{role}")
    lines += ["program"]
    lines += _lines(program)
    return "\n".join(lines) + "\n"


def _lines(program: Placed) -> list[str]:
    names = Names()
    kinds = {i.name: i.kind for i in program.inputs}
    lines = []
    for node in program.graph.graph.nodes:
        if node.op == "placeholder":
            names.given(node, node.name)
            lines.append(f"     {node.name}: {kinds[node.name]} {_type(program, node)}".rstrip())
        elif node.op == "get_attr":
            names.given(node, str(node.target).strip("_"))
            lines.append(f"     {names[node]}: constant {_type(program, node)}")
        elif node.op == "output":
            lines.append(f"     return {names.show(node.args[0])}")
        else:
            names.count(node)
            mark = ">>" if facts(node).crosses is not None else "  "
            arguments = [names.show(a) for a in node.args] + [f"{k}={names.show(v)}" for k, v in said_by_name(node)]
            kind = _type(program, node)
            lines.append(f"  {mark} {names[node]}{': ' if kind else ''}{kind} = {short(node)}({', '.join(arguments)})")
    return lines


def said_by_name(node: fx.Node) -> list[tuple[str, Any]]:
    """Keyword arguments that say something about the computation."""
    return [
        (k, v) for k, v in sorted(node.kwargs.items()) if k not in ("device", "pin_memory", "layout") and v is not None
    ]


def show_type(program: Placed, node: fx.Node) -> str:
    """The dtype and the dimensions of a tensor node, with spaces by name: ``f32[atoms, 64]``."""
    return _type(program, node)


def _type(program: Placed, node: fx.Node) -> str:
    value = getattr(program.graph, str(node.target)) if node.op == "get_attr" else node.meta.get("val")
    return show_tensor(value, node.meta.get(META), lambda size: str(program.size(size)))


def show_tensor(value: Any, place: Any, size: Callable[[Any], str]) -> str:
    """The dtype and the dimensions of a value, spaces by name where its placement is known; empty if it is no tensor.

    `size` gives the text of any other size.
    """
    if not isinstance(value, torch.Tensor):
        return ""
    dims = place.dims if isinstance(place, Placement) and len(place.dims) == value.dim() else ((),) * value.dim()
    sizes = ["*".join(str(f) for f in d) if d else size(n) for d, n in zip(dims, value.shape, strict=True)]
    partial = " partial" if isinstance(place, Placement) and place.partial else ""
    return f"{DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(sizes)}]{partial}"
