"""Compute values of a program while it is compiled: functions of one number a row, for any numbers, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table

from ...ir import Normal
from ...ir.constants import attribute
from ...runtime.execution.precision import as_written
from .one_scalar import Linear, is_gradient

LINEAR = 1e-9
"""How near a value is to the sum of its sources times factors, relative to the largest, if it is linear in them."""


class Evaluation:
    """Functions of a root, and values that are linear in others with such factors."""

    def __init__(self, program: Normal, root: fx.Node) -> None:
        self.program, self.root = program, root
        self._constants: dict[str, Any] = {}

    def functions(self, nodes: Sequence[fx.Node], x: Tensor) -> Tensor:
        """Functions of numbers, side by side. Shapes: [n] -> [n, functions]."""
        values = self._run(nodes, {self.root: self._as(self.root, x)}, len(x))
        return torch.cat([values[n].reshape(len(x), -1) for n in nodes], 1)

    def conditions(self, nodes: Sequence[fx.Node], x: Tensor) -> Tensor:
        """Truth values that functions are made by. Shapes: [n] -> [n, conditions]."""
        found = [n for n in ancestors(nodes, {self.root: x}) if getattr(n.meta.get("val"), "dtype", None) == torch.bool]
        values = self._run(found, {self.root: self._as(self.root, x)}, len(x))
        some = [v.reshape(len(x), -1) for v in values.values() if v.shape[:1] == (len(x),)]
        return torch.cat(some, 1) if some else torch.zeros(len(x), 0, dtype=torch.bool)

    def factors(self, linear: Linear, x: Tensor) -> list[Tensor] | None:
        """The factors of each source, flat: [n, numbers of a row]. None if the result is not linear in the sources."""
        generator = torch.Generator().manual_seed(0)
        shapes = [n.meta["val"].shape[1:] for n in linear.sources]
        with torch.enable_grad():
            given = [
                torch.randn(len(x), *shape, generator=generator, dtype=torch.float64).requires_grad_()
                for shape in shapes
            ]
            held: dict[fx.Node, Tensor] = {self.root: self._as(self.root, x)}
            result = self._run([linear.result], {**held, **dict(zip(linear.sources, given, strict=True))}, len(x))
            total = result[linear.result].reshape(-1)
            found = torch.autograd.grad(total.sum(), given, allow_unused=True)
        factors = [
            (torch.zeros_like(g) if f is None else f).reshape(len(x), -1) for f, g in zip(found, given, strict=True)
        ]
        products = [f * g.detach().reshape(len(x), -1) for f, g in zip(factors, given, strict=True)]
        scale = sum(float(p.abs().sum(1).max()) for p in products)
        off = float((sum(p.sum(1) for p in products) - total.detach()).abs().max())
        return factors if off <= LINEAR * scale else None

    @staticmethod
    def _as(node: fx.Node, x: Tensor) -> Tensor:
        return x.reshape(len(x), *node.meta["val"].shape[1:])

    def _run(self, wanted: Sequence[fx.Node], given: Mapping[fx.Node, Tensor], rows: int) -> dict[fx.Node, Tensor]:
        values: dict[fx.Node, Any] = dict(given)
        for node in ancestors(wanted, given):
            if node in values:
                continue
            value = node.meta.get("val")
            if node.op == "get_attr":
                values[node] = self._constant(str(node.target))
            elif isinstance(value, int | torch.SymInt):
                values[node] = self._size(value, rows)
            else:
                target: Any = node.target
                # Torch does not differentiate each operator of a backward pass, but what it is made of.
                run = decomposition_table.get(target, target) if is_gradient(node) else target
                values[node] = run(*self._of(node.args, values), **self._of(node.kwargs, values))
        return {n: values[n] for n in wanted}

    def _of(self, arguments: Any, values: Mapping[fx.Node, Any]) -> Any:
        def plain(x: Any) -> Any:
            if isinstance(x, torch.dtype):
                return torch.float64 if x.is_floating_point else x
            if isinstance(x, torch.device):
                return torch.device("cpu")
            return values[x] if isinstance(x, fx.Node) else x

        return fx.node.map_aggregate(arguments, plain)  # type: ignore[no-untyped-call]

    def _constant(self, name: str) -> Any:
        if name not in self._constants:
            value = attribute(self.program.graph, name).detach().cpu()
            self._constants[name] = value.double() if value.is_floating_point() else value
        return self._constants[name]

    def _size(self, value: Any, rows: int) -> int:
        """A size, where there are so many rows."""
        symbol = self.program.size(self.root.meta["val"].shape[0])
        return int(self.program.size(value).xreplace({symbol: rows}))


def on_example(program: Normal, node: fx.Node, leaves: Iterable[Tensor]) -> Tensor:
    """A value of the example."""
    values: dict[fx.Node, Any] = {}
    names = [n for n in program.graph.graph.nodes if n.op == "placeholder"]
    values |= {n: leaf.detach() for n, leaf in zip(names, leaves, strict=True)}
    with torch.no_grad(), as_written():
        for n in ancestors([node], values, through_sizes=True):
            if n.op == "get_attr":
                values[n] = attribute(program.graph, str(n.target)).detach()
            elif n not in values:
                args, kwargs = fx.node.map_arg((n.args, n.kwargs), values.__getitem__)
                values[n] = n.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]  # type: ignore[no-any-return]


def ancestors(
    wanted: Iterable[fx.Node], given: Mapping[fx.Node, Any] | None = None, through_sizes: bool = False
) -> list[fx.Node]:
    """Nodes that others depend on, themselves among them, in order; those that are given depend on nothing."""
    found: set[fx.Node] = set()
    stack = list(wanted)
    order: dict[fx.Node, int] = {}
    for node in stack[:1]:
        order = {n: i for i, n in enumerate(node.graph.nodes)}
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            is_size = isinstance(node.meta.get("val"), int | torch.SymInt)
            if not (given and node in given) and (through_sizes or not is_size):
                stack += node.all_input_nodes
    return sorted(found, key=order.__getitem__)
