"""Trees of sums: what `join_parts` and `merge_sums` look for, and how they put something else in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ...ir.writer import write

aten = torch.ops.aten


def roots_of_sums(graph: fx.Graph) -> list[fx.Node]:
    """The sums of a graph that are not merely summands of another."""
    return [n for n in graph.nodes if _is_sum(n) and not (len(n.users) == 1 and _is_sum(next(iter(n.users))))]


def summands(root: fx.Node) -> Iterator[fx.Node]:
    """The summands of a tree of sums that nothing else uses, from left to right; one that counts twice comes twice."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if _is_sum(node) and (node is root or len(node.users) == 1):
            waiting += reversed(node.args)  # type: ignore[arg-type]
        else:
            yield node


def replace_sum(root: fx.Node, terms: Sequence[fx.Node]) -> None:
    """Put the sum of `terms` where the tree of `root` was."""
    total = terms[0]
    for term in terms[1:]:
        with root.graph.inserting_before(root):
            total = write(root.graph, aten.add.Tensor, (total, term), like=root)
    root.replace_all_uses_with(total)
    _erase(root)


def _is_sum(node: fx.Node) -> bool:
    """True if a node adds two tensors of its own shape and dtype."""
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return False
    return all(isinstance(a, fx.Node) and _layout(a) == _layout(node) for a in node.args)


def _layout(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return (value.dtype, str(tuple(value.shape))) if isinstance(value, torch.Tensor) else None


def _erase(root: fx.Node) -> None:
    """Erase a tree of sums that nothing uses any more."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if _is_sum(node) and not node.users:
            waiting += node.all_input_nodes
            node.graph.erase_node(node)
