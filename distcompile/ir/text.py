"""Operators as text."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "b8",
}


def show_graph(graph: fx.Graph) -> str:
    """The operators of a graph in order, named by position: equal for equal programs."""
    names = Names()
    lines = []
    for node in graph.nodes:
        if node.op != "output":
            names.count(node)
        arguments = [names.show(a) for a in node.args] + [
            f"{k}={names.show(v)}" for k, v in sorted(node.kwargs.items())
        ]
        target = "" if node.op == "placeholder" else str(node.target)
        lines.append(f"{node.op} {target}({', '.join(arguments)})")
    return "\n".join(lines)


def short(node: fx.Node) -> str:
    """An operator's name without namespace and default overload."""
    return short_name(node.target)


def short_name(target: Any) -> str:
    """The name of an operator itself, without namespace and default overload."""
    return getattr(target, "__name__", str(target)).removesuffix(".default")  # type: ignore[no-any-return]


class Names:
    """Names in order of appearance, so that they do not depend on what an earlier pass erased."""

    def __init__(self) -> None:
        self._names: dict[fx.Node, str] = {}
        self._counted = 0

    def given(self, node: fx.Node, name: str) -> None:
        self._names[node] = name

    def count(self, node: fx.Node) -> None:
        self._names[node] = f"%{self._counted}"
        self._counted += 1

    def __getitem__(self, node: fx.Node) -> str:
        return self._names[node]

    def show(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._names[value]
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self.show(v) for v in value) + "]"
        if isinstance(value, torch.dtype):
            return DTYPES.get(value, str(value))
        return f"{value:.9g}" if isinstance(value, float) else str(value)
