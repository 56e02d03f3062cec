"""Values that depend on buffers of a model alone, and on nothing that a call is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .operators import is_random


class Constants:
    """Values of nodes that depend on buffers only. Weights are never taken for constants."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._known: dict[fx.Node, Any] = {}
        self._made_of: dict[fx.Node, frozenset[fx.Node]] = {}
        """The buffers that a constant depends on."""
        for node in module.graph.nodes:
            if node.op == "get_attr":
                if _is_buffer(value := attribute(module, str(node.target))):
                    self._known[node] = value.detach()
                    self._made_of[node] = frozenset([node])
            elif node.op == "call_function" and not is_random(node):
                made_of = [self._made_of.get(n) for n in node.all_input_nodes]
                if made_of and None not in made_of:
                    self._made_of[node] = frozenset().union(*made_of)  # type: ignore[arg-type]

    def buffers(self, node: fx.Node) -> list[Tensor]:
        """The buffers that a constant depends on."""
        return [attribute(self._module, str(n.target)) for n in self._made_of[node]]

    def value(self, node: fx.Node) -> Tensor | None:
        """The value of a constant; None for other nodes."""
        if node not in self._made_of:
            return None
        if node not in self._known:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.value(n))
            with torch.no_grad():
                self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found = self._known[node]
        return found if isinstance(found, Tensor) else None


def attribute(module: nn.Module, name: str) -> Any:
    """An attribute of a module or of one within it, by its path."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _is_buffer(value: Any) -> bool:
    """True if an attribute is a tensor whose values the model keeps, and whose version tells if they were changed."""
    kept = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.requires_grad
    return kept and value.device.type == "cpu" and not value.is_inference()
