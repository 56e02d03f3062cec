"""Send those rows of a value that somebody reads, or that anything was added to.

    s = index_add(zeros, 0, p, y)    [bonds]            most bonds are in no angle: their sum is zero
    h = halo_gather(s, send_rows, ...)           =>     h = halo_gather(s, send_rows of p, ..., places of p)

A space has one list of halo rows, of all that any pointer reads. A value that is a sum through one pointer is zero
elsewhere, and one that is read through one pointer is needed nowhere else. Every atom has neighbours, so nothing is
sought among values with rows of atoms.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ...ir import Distributed, Space, replace_graph
from ...ir.graphs import copy_graph
from ...ir.operators import facts
from ...rules.indexing import accesses
from ...rules.levels import constant_of, continues, is_fresh
from ...runtime.operators.halo import halo_gather, halo_reduce
from ..spaces.pointers import pointer_root
from .insert_halos import Plans


def thin_messages(program: Distributed) -> Distributed:
    """Return `program` with messages of those rows that matter."""
    module, _ = copy_graph(program.graph)
    plans = Plans(module.graph)
    spaces: dict[str, Space] = {}
    of = {i.name: i.space for i in program.inputs if i.kind == "send_rows"}
    for node in [n for n in module.graph.nodes if _is_of_halo(n)]:
        space = of[node.args[1].name]  # type: ignore[union-attr]
        through = _through(program, node)
        if space is None or not through:
            continue
        name = f"{space} of {' and '.join(through)}"
        some = spaces.setdefault(name, Space(name, space.symbol, some_of=space, through=through))
        node.update_arg(1, plans.get(some, "send_rows"))
        node.update_arg(2, plans.get(some, "splits"))
        if node.target is halo_reduce:
            node.args = (*node.args, "sum")[:6]
        node.args = (*node.args, plans.get(some, "places"))
    found = tuple(spaces.values())
    return replace_graph(program, module, inputs=(*program.inputs, *plans.inputs), thinned_spaces=found)


def _is_of_halo(node: fx.Node) -> bool:
    """Whether a node is a message about halo rows."""
    message = facts(node).message
    return message is not None and message.to in ("readers", "owners")


def _through(program: Distributed, message: fx.Node) -> tuple[str, ...]:
    """The pointers whose rows are all that matter of a message; none if all of the halo does."""
    if message.target is halo_gather:
        return written_through(program, message.args[0])  # type: ignore[arg-type]
    if message.target is halo_reduce:
        return written_through(program, message) or read_through(program, message, message.users)
    return read_through(program, message, message.users)


def written_through(program: Distributed, value: fx.Node) -> tuple[str, ...]:
    """The pointers through which everything was added that a sum is; none if it may be more than zero anywhere."""
    node = value.args[0] if value.target is halo_reduce else value
    names = []
    while isinstance(node, fx.Node) and (found := accesses(node)) and found[0].kind == "scatter":
        names += [_pointer(a.index) for a in found]
        base, node = node.args[0], continues(node)
        if node is None and not (isinstance(base, fx.Node) and is_fresh(base) and constant_of(base) == 0):
            return ()
    return _some(program, names)


def read_through(program: Distributed, table: fx.Node, users: Iterable[fx.Node]) -> tuple[str, ...]:
    """The pointers through which all of `users` read a value; none if one reads it row by row."""
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
    """Names of pointers, if they point at fewer rows than make the halo."""
    pointers = {p.name: p for p in program.pointers}
    given = [pointers[n] for n in dict.fromkeys(names) if n in pointers]
    if not given or len(given) < len(set(names)) or given[0].target == program.spaces[0]:
        return ()
    halo = {p.origin for p in program.pointers if p.target == given[0].target and p.leaves_rank}
    return tuple(p.name for p in given) if halo - {p.origin for p in given} else ()
