"""Operators that change a tensor in place, as operators that return a new one.

    y = slice(x, 0, 0, 3)             y  = slice(x, 0, 0, 3)
    add_(y, z)                =>      y2 = add(y, z)
    use(x)                            x2 = slice_scatter(x, y2, 0, 0, 3)
                                      use(x2)

A view shares memory with the tensor that it is a view of, so what changes one changes the other: the change is carried
back through views, and other views of the same memory are taken again when they are next used. torch would follow the
whole call once more for this, which takes two thirds of the time in which it was followed first; it still does so for
what there is no rule for here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from ..ir.graphs import copy_node, graph_module, writes

aten = torch.ops.aten


class NoRule(Exception):  # noqa: N818  caught by the capture, never seen by a user
    """A change that cannot be written without following the call once more."""


def without_mutations(module: fx.GraphModule, mode: FakeTensorMode) -> fx.GraphModule:
    """Return the graph of `module` with operators that leave their operands as they are.

    Raises:
        NoRule: an operator, or a view that is changed, is not known here; or an input or a parameter is changed.
    """
    return graph_module(module, _Rewriter(mode).run(module.graph))


class _Rewriter:
    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.graph = fx.Graph()
        self.viewed: dict[fx.Node, fx.Node] = {}
        """The tensor that a view is a view of."""
        self.changed: dict[fx.Node, fx.Node] = {}
        """The operand that an operator changed, and returned."""
        self.values: dict[fx.Node, tuple[fx.Node, int]] = {}
        """The new node that holds a value, and the number of changes of its memory when it was made."""
        self.changes: dict[fx.Node, int] = {}
        """The number of changes of a tensor's memory, by the node that made it."""

    def run(self, graph: fx.Graph) -> fx.Graph:
        for node in graph.nodes:
            if writes(node.target):
                self._change(node)
                continue
            if (viewed := _viewed(node, self.viewed)) is not None:
                self.viewed[node] = viewed
            self._copy(node)
        return self.graph

    def value(self, node: fx.Node) -> fx.Node:
        """The new node for the content of an old node at this point."""
        node = self._itself(node)
        new, seen = self.values[node]
        if seen < self.changes.get(self._memory(node), 0):
            new = self._copy(node)
        return new

    def _copy(self, node: fx.Node) -> fx.Node:
        if node.target in _BY_LAYOUT and self._memory(node) in self.changes:
            raise NoRule(f"{node.target} of what was changed, which may lie in memory in another way now")
        new = copy_node(self.graph, node, self.value)
        self.values[node] = new, self.changes.get(self._memory(node), 0)
        return new

    def _itself(self, node: fx.Node) -> fx.Node:
        while node in self.changed:
            node = self.changed[node]
        return node

    def _memory(self, node: fx.Node) -> fx.Node:
        while node in self.viewed:
            node = self._itself(self.viewed[node])
        return node

    def _change(self, node: fx.Node) -> None:
        """Write an operator that changes its first operand."""
        target, part = self._itself(node.args[0]), _returning(node)  # type: ignore[arg-type]
        if self._memory(target).op != "call_function":
            raise NoRule(f"{node.target} changes {self._memory(target)}")
        self.changed[node] = target
        args: Any = fx.node.map_arg(node.args, self.value)
        kwargs: Any = fx.node.map_arg(node.kwargs, self.value)
        new = self._call(node, part, *args, **kwargs)
        dtype = target.meta["val"].dtype
        if new.meta["val"].dtype != dtype:
            new = self._call(node, aten._to_copy.default, new, dtype=dtype)
        made = [(target, new)]
        while target in self.viewed:
            whole = self._itself(self.viewed[target])
            new = self._carried_back(node, target, self.value(whole), new)
            target = whole
            made.append((target, new))
        self.changes[target] = self.changes.get(target, 0) + 1
        for changed, value in made:
            self.values[changed] = value, self.changes[target]

    def _carried_back(self, node: fx.Node, view: fx.Node, whole: fx.Node, part: fx.Node) -> fx.Node:
        """The whole tensor after a change of a view of it."""
        rest: Any = fx.node.map_arg(view.args[1:], self.value)
        if view.target in _SAME:
            return part
        if view.target in _SCATTERS and whole.meta["val"].is_complex():
            return self._carried_back_complex(node, view, whole, part, rest)
        if view.target in _SCATTERS:
            return self._call(node, _SCATTERS[view.target], whole, part, *rest)
        if view.target in _OWN_INVERSE:
            return self._call(node, view.target, part, *rest)
        if view.target is aten.permute.default:
            order = [d % len(rest[0]) for d in rest[0]]
            return self._call(node, aten.permute.default, part, [order.index(d) for d in range(len(order))])
        if view.target is aten.unsqueeze.default:
            return self._call(node, aten.squeeze.dim, part, *rest)
        if view.target is aten.view.default:
            return self._call(node, aten.view.default, part, self._sizes(node, whole))
        raise NoRule(f"{node.target} changes what {view.target} shows")

    def _carried_back_complex(self, node: fx.Node, view: fx.Node, whole: fx.Node, part: fx.Node, rest: Any) -> fx.Node:
        """The same as pairs of real numbers, since torch does not differentiate it for complex ones."""
        real, changed = (self._call(node, aten.view_as_real.default, x) for x in (whole, part))
        dim, *others = rest or (0,)
        ndim = whole.meta["val"].dim()
        pairs = self._call(node, _SCATTERS[view.target], real, changed, dim % ndim, *others)
        return self._call(node, aten.view_as_complex.default, pairs)

    def _sizes(self, node: fx.Node, tensor: fx.Node) -> list[Any]:
        shape = tensor.meta["val"].shape
        return [
            n if isinstance(n, int) else self._call(node, aten.sym_size.int, tensor, d) for d, n in enumerate(shape)
        ]

    def _call(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = self.graph.call_function(target, args, kwargs)
        new.meta.update(like.meta)
        with self.mode, torch.no_grad():
            given: Any = fx.node.map_arg(args, lambda n: n.meta["val"])
            named: Any = fx.node.map_arg(kwargs, lambda n: n.meta["val"])
            try:
                new.meta["val"] = target(*given, **named)
            except RuntimeError as error:  # it may ask for values of the example
                raise NoRule(f"torch cannot follow {target}: {error}") from error
        return new


_BY_LAYOUT = {aten.as_strided.default, aten._reshape_alias.default, aten.view.dtype}
_SAME = {aten.alias.default, aten.detach.default}
_SCATTERS: dict[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}
_OWN_INVERSE = {aten.t.default, aten.transpose.int}


def _returning(node: fx.Node) -> Callable[..., Any]:
    """The operator that returns what `node` writes into its first operand."""
    operator_: Any = node.target
    schema = operator_._schema
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    namespace, name = schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None) if name.endswith("_") else None
    found = getattr(packet, operator_._overloadname, None)
    if written != [0] or not isinstance(node.args[0], fx.Node) or found is None or found._schema.is_mutable:
        raise NoRule(f"{node.target} writes into its operands")
    if [a.name for a in found._schema.arguments] != [a.name for a in schema.arguments]:
        raise NoRule(f"{found} takes other operands than {node.target}")
    return found  # type: ignore[no-any-return]


def _viewed(node: fx.Node, views: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The operand whose memory a value shares, or whose memory the values of a list share."""
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return source if source in views else None
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or all(r.alias_info is None for r in schema.returns):
        return None
    shared = next(i for i, a in enumerate(schema.arguments) if a.alias_info is not None)
    operand = node.args[shared]
    return operand if isinstance(operand, fx.Node) and isinstance(operand.meta.get("val"), Tensor) else None
