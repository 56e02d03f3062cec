"""A program on another device than the one it was captured on: constants are copied, and operators make tensors there.

zeros = full([n], 0, device="cuda:0")          zeros = full([n], 0, device="cuda:1")
y = region_1(n, x, weight)               =>    y = region_1(n, x, weight on cuda:1)

The bodies of regions run by their operators there: generated code stays on the device for which it was made.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...ir import Tiled
from ...ir.graphs import copy_graph
from .tiles import Region


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A constant on another device."""

    of: weakref.ref[Tensor]
    version: int
    """Counts the changes of a tensor in place."""
    value: Tensor


class Elsewhere:
    """One program on one other device."""

    def __init__(self, program: Tiled, home: torch.device, device: torch.device) -> None:
        """
        Args:
            program: a tiled program.
            home: the device on which it was captured.
            device: the one on which it is to run.
        """
        self.device = device
        self.tiled = _moved(program.tiled, home, device)
        self.differentiated = _moved(program.differentiated, home, device)
        self._copies: dict[str, _Copy] = {}

    def constants(self, at_home: Mapping[str, Any]) -> dict[str, Any]:
        """Constants of the program here: copies of tensors, made anew when these change; and its regions."""
        tensors = {name: self._copy(name, value) for name, value in at_home.items() if isinstance(value, Tensor)}
        return {**at_home, **tensors, **dict(self.tiled.named_children())}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        known = self._copies.get(name)
        if known is None or known.of() is not tensor or known.version != tensor._version:
            value = tensor.detach().to(self.device)
            known = self._copies[name] = _Copy(weakref.ref(tensor), tensor._version, value)
        return known.value


def _moved(module: fx.GraphModule, home: torch.device, device: torch.device) -> fx.GraphModule:
    """A graph whose operators make tensors on a device, where they made them at home; regions included."""

    def there(value: Any) -> Any:
        at_home = isinstance(value, torch.device) and value.type == home.type and value.index in (None, home.index)
        return device if at_home else value

    copy, nodes = copy_graph(module)
    for node in nodes.values():
        node.args = fx.node.map_aggregate(node.args, there)  # type: ignore[assignment]
        node.kwargs = fx.node.map_aggregate(node.kwargs, there)  # type: ignore[assignment]
    for name, child in module.named_children():
        if isinstance(child, Region):
            copy.add_module(name, Region(child.spec, _moved(child.graph_module, home, device), child.block))
    return copy
