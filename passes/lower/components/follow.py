"""Follow a body as if there were one row: its operators become definitions of elements.

s = mul(x[:, 1:], c)     with the constant c = [0, 1, 2]    =>    only the third element of s is computed
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ....ir.operators import facts_of, filled_with
from .elements import Table, Unsupported
from .operators import HANDLERS
from .values import WHOLE, Builder, Given, Input, Value, check_size


@dataclasses.dataclass(frozen=True)
class Followed:
    """A body in component code."""

    table: Table
    outputs: tuple[Value, ...]
    tables: Mapping[int, int]
    """The inputs that are read by pointers, and the dimension along which."""


def follow(body: fx.GraphModule, given: Sequence[Given]) -> Followed:
    """The body as definitions of elements.

    Raises:
        Unsupported: an operator of it has no form in component code.
    """
    table = Table()
    nodes = list(body.graph.nodes)
    names = [n for n in nodes if n.op == "placeholder"]
    env: dict[fx.Node, Any] = {names[0]: 1}
    for i, (node, about) in enumerate(zip(names[1:], given, strict=True)):
        env[node] = Input(i, about)
    follower = _Follower(table, env)
    outputs = tuple(follower.value(v) for v in follower.run(body))
    return Followed(table, outputs, follower.tables)


class _Follower(Builder):
    def __init__(self, table: Table, env: dict[fx.Node, Any]) -> None:
        super().__init__(table)
        self.env = env

    def run(self, module: fx.GraphModule) -> Any:
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], self.env.__getitem__)
            if node.op == "call_function":
                self.env[node] = self._call(node)
            elif node not in self.env:
                raise Unsupported(f"{node.op} {node.target}")
        return None

    def _call(self, node: fx.Node) -> Any:
        args: Any = fx.node.map_arg(node.args, self.env.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.env.__getitem__)
        target: Any = node.target
        if not any(isinstance(x, Value | Input) for x in _flat((args, kwargs))) and not isinstance(
            target, torch._ops.OpOverload
        ):
            return target(*args, **kwargs)
        result = node.meta.get("val")
        dtype = result.dtype if isinstance(result, Tensor) else None
        if target in HANDLERS:
            return HANDLERS[target](self, dtype, *args, **_understood(kwargs))
        row = facts_of(target)
        if row.moves or row.view or row.reshape or row.identity:
            return self._moved(target, args, kwargs)
        if row.fill is not None:
            return self._full(node, args, dtype)
        return self._decomposed(target, args, kwargs)

    # ---- Elements that only move.

    def _moved(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that moves elements about on their names."""
        values = [self.value(x) for x in _flat((args, kwargs)) if isinstance(x, Value | Input)]
        if len({v.dtype for v in values}) > 1:
            raise Unsupported(f"{target} of several dtypes")

        def names(x: Any) -> Any:
            if isinstance(x, Value | Input):
                return self.value(x).elements
            if isinstance(x, list | tuple):
                return type(x)(map(names, x))
            return x

        result = target(*names(args), **names(_understood(kwargs)))
        if isinstance(result, Tensor):
            check_size(result.shape, WHOLE)
            return Value(result, values[0].dtype)
        return [Value(r, values[0].dtype) for r in result]

    def _full(self, node: fx.Node, args: Any, dtype: Any) -> Value:
        filled = filled_with(node)
        shape = [int(self.env[n]) if isinstance(n, fx.Node) else n for n in _shape_of(node, args, self)]
        if not isinstance(filled, int | float | bool):
            raise Unsupported(f"{node.target} of a value that is computed")
        return Value(torch.full(shape, self.literal(filled)), dtype)

    def _decomposed(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Follow an operator as others that it stands for."""
        from torch._inductor.decomposition import select_decomp_table  # takes seconds to import

        decompositions = select_decomp_table()
        if target not in decompositions:
            raise Unsupported(f"{target}")
        given: list[Any] = []

        def stand_in(x: Any) -> Any:
            if isinstance(x, Value | Input):
                given.append(self.value(x))
                return torch.empty(given[-1].elements.shape, dtype=given[-1].dtype, device="meta")
            if isinstance(x, list | tuple):
                return type(x)(map(stand_in, x))
            return x

        def flat(*tensors: Tensor) -> Any:
            queue = iter(tensors)

            def put_back(x: Any) -> Any:
                if isinstance(x, Value | Input):
                    return next(queue)
                if isinstance(x, list | tuple):
                    return type(x)(map(put_back, x))
                return x

            return target(*put_back(args), **{k: put_back(v) for k, v in kwargs.items() if k != "device"})

        stand_in((args, tuple(kwargs.values())))
        tensors = [torch.empty(v.elements.shape, dtype=v.dtype, device="meta") for v in given]
        with torch.no_grad():
            module = make_fx(flat, decompositions)(*tensors)
        if any(n.target is target for n in module.graph.nodes):
            raise Unsupported(f"{target}")
        names = [n for n in module.graph.nodes if n.op == "placeholder"]
        inner = _Follower(self.table, dict(zip(names, given, strict=True)))
        inner.inputs, inner.tables = self.inputs, self.tables
        return inner.run(module)


def _understood(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments that change what is computed."""
    return {k: v for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory", "memory_format")}


def _flat(x: Any) -> list[Any]:
    if isinstance(x, list | tuple):
        return [y for part in x for y in _flat(part)]
    return [y for part in x.values() for y in _flat(part)] if isinstance(x, dict) else [x]


def _shape_of(node: fx.Node, args: Any, follower: _Follower) -> Sequence[Any]:
    """The shape of a tensor that is made of one value."""
    first = args[0]
    if isinstance(first, Value | Input):
        is_like = str(node.target).split(".")[1].endswith("_like")
        return follower.value(first).elements.shape if is_like else args[1]
    return first  # type: ignore[no-any-return]
