"""How a pass writes operators in front of one that it rewrites."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


class Writer:
    """Adds operators in front of a node, with their fake results."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self._graph, self._node = graph, node
        value = node.meta["val"]
        self._mode = (value[0] if isinstance(value, list | tuple) else value).fake_mode

    def __call__(self, target: Any, *args: Any, value: Any = None, **kwargs: Any) -> fx.Node:
        """One operator; `value` stands in where its result has a size that another operator has named."""
        new = self._graph.call_function(target, args, kwargs)
        if value is None:
            with self._mode:
                value = target(*_values(args), **_values(kwargs))
        new.meta = {"val": value, "stack_trace": self._node.meta.get("stack_trace")}
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


def _values(args: Any) -> Any:
    return fx.node.map_arg(args, lambda n: n.meta["val"])


def ndim(node: fx.Node) -> int:
    """Number of dimensions of a tensor node."""
    return node.meta["val"].dim()  # type: ignore[no-any-return]
