"""Messages that start together leave as one.

    p = start("reduce", x, ...)           b = bucket()
    v = slice(y)                          v = slice(y)
    q = start("reduce", v, ...)     =>    p = start("reduce", x, ..., bucket=b)
    region(...)                           q = start("reduce", v, ..., bucket=b)
                                          send(b)
                                          region(...)

Their spaces and dtypes may differ: a bucket holds bytes. None waits for work of another, so what travels beside work
travels beside as much of it as before.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from ...ir import Tiled, copy_tiled, replace_tiled
from ...ir.operators import facts
from ...ir.writer import write
from ...runtime.operators.buckets import bucket, send
from ...runtime.operators.messages import start, wait
from .storage import storage


def bucket_messages(program: Tiled) -> Tiled:
    """Return a tiled program in which messages share a bucket where one starts right after the other."""
    module = copy_tiled(program)
    for together, behind in list(_together(module.graph)):
        _share(module.graph, together, behind)
    return replace_tiled(program, module)


def _together(graph: fx.Graph) -> Iterator[tuple[list[fx.Node], set[fx.Node]]]:
    """Two or more messages that can share a bucket: no work is between their starts, and none needs another's rows.

    With them come the nodes between them that do need it.
    """
    found: list[fx.Node] = []
    behind: set[fx.Node] = set()
    brought: set[fx.Node] = set()
    """Memory written by messages that are waited for at once: its readers need them, even if no operand says so."""
    for node in graph.nodes:
        is_message = node.target is start
        if node.target is wait and node.args[0] in found:
            behind.add(node)
            brought.add(storage(node.args[0].args[1]))
            continue
        given = node.all_input_nodes
        needs_another = not behind.isdisjoint(given) or any(storage(n) in brought for n in given)
        if (is_message and needs_another) or not (is_message or _is_free(node)):
            if len(found) > 1:
                yield found, behind
            found, behind, brought = [], set(), set()
            needs_another = False
        if is_message:
            found.append(node)
        if needs_another:
            behind.add(node)


def _is_free(node: fx.Node) -> bool:
    """True if a node is neither a region nor part of another message."""
    return node.op in ("call_function", "get_attr") and facts(node).crosses is None and node.target is not wait


def _share(graph: fx.Graph, starts: list[fx.Node], behind: set[fx.Node]) -> None:
    """Let messages start at the place of the last of them. The waits between, and the nodes that need them, follow."""
    nodes = list(graph.nodes)
    last = starts[-1]
    between = nodes[nodes.index(starts[0]) : nodes.index(last)]
    with graph.inserting_before(last):
        shared = write(graph, bucket, value=None)
    for begin in starts[:-1]:
        last.prepend(begin)
    for begin in starts:
        begin.kwargs = {**begin.kwargs, "bucket": shared}
    with graph.inserting_after(last):
        place = write(graph, send, (shared,), value=None)
    for node in [n for n in between if n in behind]:
        place.append(node)
        place = node
