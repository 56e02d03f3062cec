"""Send those rows of a value that somebody reads, or that anything was added to.

    s = index_add(zeros, 0, p, y)    [bonds]            most bonds are in no angle: their sum is zero
    h = halo_gather(s, send_rows, ...)           =>     h = halo_gather(s, send_rows of p, ..., places of p)

A space has one list of halo rows, of all that any pointer reads. A value that is a sum through one pointer is zero
elsewhere, and one that is read through one pointer is needed nowhere else. Every atom has neighbours, so nothing is
sought among values with rows of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from ...ir import Distributed, Space, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import pointer_root
from ...rules.indexing import accesses
from ...rules.levels import constant_of, continues, is_fresh
from ...rules.messages import Message, is_message, message
from .insert_halos import Plans


def thin_messages(program: Distributed) -> Distributed:
    """Return `program` with messages of those rows that matter."""
    module, _ = copy_graph(program.graph)
    plans = Plans(module.graph)
    spaces: dict[str, Space] = {}
    for node, sent in [(n, m) for n in module.graph.nodes if (m := message(n)) is not None]:
        through = _through(program, node, sent)
        if not through:
            continue
        space = sent.space(program.inputs)
        name = f"{space} of {' and '.join(through)}"
        some = spaces.setdefault(name, Space(name, space.symbol, some_of=space, through=through))
        plan = plans.get(some, "send_rows"), plans.get(some, "splits"), plans.get(some, "places")
        node.args = sent.thinned(*plan).operands()
    found = tuple(spaces.values())
    return replace_graph(program, module, inputs=(*program.inputs, *plans.inputs), thinned_spaces=found)


def _through(program: Distributed, node: fx.Node, sent: Message) -> tuple[str, ...]:
    """The pointers whose rows are the only ones that matter in a message; empty if the whole halo matters."""
    if sent.kind == "gather":
        return written_through(program, sent.value)
    if sent.kind == "reduce":
        return written_through(program, node) or read_through(program, node, node.users)
    return read_through(program, node, node.users)


def written_through(program: Distributed, value: fx.Node) -> tuple[str, ...]:
    """The pointers through which all rows of a sum were added; empty if other rows of it may not be zero."""
    node: Any = value.args[0] if is_message(value, "reduce") else value
    names = []
    while isinstance(node, fx.Node) and (found := accesses(node)) and found[0].kind == "scatter":
        names += [_pointer(a.index) for a in found]
        base, node = node.args[0], continues(node)
        if node is None and not (isinstance(base, fx.Node) and is_fresh(base) and constant_of(base) == 0):
            return ()
    return _some(program, names)


def read_through(program: Distributed, table: fx.Node, users: Iterable[fx.Node]) -> tuple[str, ...]:
    """The pointers through which all of `users` read a value; empty if one reads it row by row."""
    names = []
    for user in users:
        found = [a for a in accesses(user) if a.table is table]
        if not found or any(a.kind != "gather" for a in found) or user.all_input_nodes.count(table) > len(found):
            return ()
        names += [_pointer(a.index) for a in found]
    return _some(program, names)


def _pointer(index: fx.Node) -> str:
    root = pointer_root(index)
    return root.name if root is not None else ""


def _some(program: Distributed, names: list[str]) -> tuple[str, ...]:
    """Names of pointers if they point at fewer rows than the halo has; empty otherwise."""
    pointers = {p.name: p for p in program.pointers}
    given = [pointers[n] for n in dict.fromkeys(names) if n in pointers]
    if not given or len(given) < len(set(names)) or given[0].target == program.spaces[0]:
        return ()
    halo = {p.origin for p in program.pointers if p.target == given[0].target and p.leaves_rank}
    return tuple(p.name for p in given) if halo - {p.origin for p in given} else ()
