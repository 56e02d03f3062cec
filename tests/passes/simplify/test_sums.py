"""Trees of sums: their roots, their summands in order, and another sum put in their place."""

from __future__ import annotations

import torch
from torch import fx

from distcompile.passes.simplify.sums import replace_sum, roots_of_sums, summands

aten = torch.ops.aten


def tree(twice: bool = False) -> tuple[fx.Graph, list[fx.Node], fx.Node]:
    """(a + b) + (c + d), or + (c + c); with its leaves, and its root."""
    graph = fx.Graph()
    leaves = [graph.placeholder(name) for name in "abcd"]
    a, b, c, d = leaves
    left = graph.call_function(aten.add.Tensor, (a, b))
    right = graph.call_function(aten.add.Tensor, (c, c if twice else d))
    root = graph.call_function(aten.add.Tensor, (left, right))
    graph.output(graph.call_function(aten.exp.default, (root,)))
    for node in graph.nodes:
        node.meta["val"] = torch.empty(3)
    return graph, leaves, root


def test_one_root_and_its_summands_from_left_to_right() -> None:
    graph, leaves, root = tree()
    assert list(roots_of_sums(graph)) == [root]
    assert list(summands(root)) == leaves


def test_what_counts_twice_comes_twice() -> None:
    _, (a, b, c, _), root = tree(twice=True)
    assert list(summands(root)) == [a, b, c, c]


def test_a_sum_that_something_else_uses_is_a_summand() -> None:
    graph, (_, _, c, d), root = tree()
    left = root.args[0]
    with graph.inserting_after(root):
        graph.call_function(aten.exp.default, (left,)).meta["val"] = torch.empty(3)
    assert list(summands(root)) == [left, c, d]


def test_another_dtype_is_another_sum() -> None:
    """It would be rounded before it is added."""
    _, (_, _, c, d), root = tree()
    right = root.args[1]
    assert isinstance(right, fx.Node)
    for node in (right, c, d):
        node.meta["val"] = torch.empty(3, dtype=torch.float16)
    assert list(summands(root)) == [root]
    assert list(summands(right)) == [c, d]


def test_a_sum_is_replaced_and_erased() -> None:
    graph, (a, _, c, _), root = tree()
    replace_sum(root, [a, c])
    graph.lint()
    adds = [node for node in graph.nodes if node.target is aten.add.Tensor]
    assert [node.args for node in adds] == [(a, c)]
    assert [node.args for node in graph.nodes if node.target is aten.exp.default] == [(adds[0],)]
