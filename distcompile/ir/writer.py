"""Operators as passes write them: each with its value, its placement, the user's line and the pass that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import fx

from .placements import META, Placement

aten = torch.ops.aten

MADE_BY = "distcompile_pass"
"""Key in ``node.meta`` of the name of the pass that made a node. A node without it is from the capture."""

_OF_OPERANDS: Any = object()
_current: ContextVar[str] = ContextVar("pass", default="")


@contextmanager
def making(name: str) -> Iterator[None]:
    """Note this name as the pass that made each node that is written meanwhile."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def write(
    graph: fx.Graph,
    target: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    like: fx.Node | None = None,
    value: Any = _OF_OPERANDS,
    place: Placement | tuple[Placement, ...] | None = None,
) -> fx.Node:
    """Write one operator at the graph's insertion point.

    Args:
        graph: where to add it.
        target: the operator.
        args: its operands.
        kwargs: by name.
        like: the operator that this one replaces, or is written for. What is known of it holds for the new one, unless
            another argument says otherwise.
        value: its fake result; None if it has none. Found from the values of operands if there is no `like` either.
        place: how its result is divided, once that is known.
    """
    new = graph.call_function(target, args, dict(kwargs or {}))
    if value is _OF_OPERANDS:
        value = like.meta.get("val") if like is not None else _value(target, args, new.kwargs)
    return described(new, like=like, value=value, place=place)


def described(
    new: fx.Node,
    *,
    like: fx.Node | None = None,
    value: Any = _OF_OPERANDS,
    place: Placement | tuple[Placement, ...] | None = None,
) -> fx.Node:
    """Note of a new node (an input, a copy, a call of a region) what `write` notes, and return it.

    Arguments as there.
    """
    if like is not None:
        new.meta = dict(like.meta)
    if value is not _OF_OPERANDS:
        new.meta["val"] = value
    if place is not None:
        new.meta[META] = place
    new.meta[MADE_BY] = _current.get()
    return new


def made_by(node: fx.Node) -> str:
    """The name of the pass that made a node."""
    return node.meta.get(MADE_BY) or "capture"


class Writer:
    """Adds operators in front of a node, with their fake results, before anything is placed."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self._graph, self._node = graph, node
        value = node.meta["val"]
        self._mode = (value[0] if isinstance(value, list | tuple) else value).fake_mode

    def __call__(self, target: Any, *args: Any, value: Any = None, **kwargs: Any) -> fx.Node:
        """Add one operator. `value` is its fake result, given if its size is one that another operator has named."""
        if value is None:
            with self._mode:
                value = _value(target, args, kwargs)
        new = write(self._graph, target, args, kwargs, value=value)
        new.meta["stack_trace"] = self._node.meta.get("stack_trace")
        return new

    def size(self, node: fx.Node, dim: int) -> Any:
        """The size of a dimension: a number, or the node of a symbolic one."""
        n = node.meta["val"].shape[dim]
        return self(aten.sym_size.int, node, dim, value=n) if isinstance(n, torch.SymInt) else n

    def filled(self, like: fx.Node, fill: Any) -> fx.Node:
        """A tensor of one value, of the sizes and dtype of another."""
        sizes, value = [self.size(like, dim) for dim in range(ndim(like))], like.meta["val"]
        options = {"dtype": value.dtype, "device": value.device}
        return self(aten.full.default, sizes, fill, value=torch.empty_like(value), **options)


def _value(target: Any, args: Any, kwargs: Any) -> Any:
    """The fake result of an operator."""
    return target(*fx.node.map_arg(args, _of), **fx.node.map_arg(kwargs, _of))


def _of(node: fx.Node) -> Any:
    return node.meta["val"]


def ndim(node: fx.Node) -> int:
    """Number of dimensions of a tensor node."""
    return node.meta["val"].dim()  # type: ignore[no-any-return]
