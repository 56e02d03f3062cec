"""Graphs of torch.fx: copied for every pass, turned into Python code when they are first run.

Most graphs are only rewritten, or handed to the code generator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule

_ONE_AT_A_TIME = threading.Lock()


def graph_module(root: torch.nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """A module of a graph. Its Python code is made when it is first run, see `runnable`."""
    return _LazyGraphModule(root, graph)


def runnable(module: fx.GraphModule) -> fx.GraphModule:
    """The same module, with its Python code made. Ranks and blocks may be threads: the first of them makes it."""
    if isinstance(module, _LazyGraphModule) and module._needs_recompile():
        with _ONE_AT_A_TIME:
            _LazyGraphModule.force_recompile(module)
    return module


def copy_node(graph: fx.Graph, node: fx.Node, operand: Callable[[fx.Node], Any]) -> fx.Node:
    """Add a copy of a node to a graph, with other operands.

    `fx.Graph.node_copy` looks for symbolic numbers among all arguments, to warn of them, and looks the node up anew for
    each attribute that it sets: most of the time that it takes.
    """
    args: Any = fx.node.map_arg(node.args, operand)  # first, since it may add others
    kwargs: Any = fx.node.map_arg(node.kwargs, operand)
    new = graph.create_node(node.op, node.target, name=node.name, type_expr=node.type)
    new._update_args_kwargs(args, kwargs)
    new.meta.update(node.meta)
    return new


def copy_graph(module: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """Return a copy of `module` to rewrite, and the map from old nodes to new ones. Parameters are shared."""
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        nodes[node] = copy_node(graph, node, nodes.__getitem__)
    return graph_module(module, graph), nodes


def writes(target: Any) -> bool:
    """True if an operator writes into an operand."""
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def anchor() -> None:
    """Mark the end of a graph's placeholders while the graph is built.

    Placeholders that are found late go before the mark.
    """
