"""Decide through which pointer each space follows its owner.

    edges: sender, receiver -> atoms        receiver gathers and scatters more bytes: edges follow receiver
    bonds: first edge -> edges              the only pointer: bonds follow their first edge
    angles: ... -> atoms, bonds, edges      the pointer whose traffic is largest becomes local

Traffic through the owner pointer stays on the rank, so the pointer that would move the most bytes is chosen. Where a
model sums messages at one end of an edge that is the end it sums at: messages are wider than what they are made of.
A pointer that holds both ends at once (``x[edge_index]``) cannot stay on the rank; without any other one, rows follow
the first of its ends, and it leaves the rank all the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

from ...ir import Access, Placed, Pointer, Space
from ...ir.operators import pointer_root
from ...rules.indexing import accesses


def choose_owners(program: Placed) -> Placed:
    """Return `program` with one owner pointer per space other than atoms; spaces in order of ownership."""
    traffic = _traffic(program)
    atoms = program.spaces[0]
    owned = [atoms]
    chosen: set[str] = set()
    joined = [s for s in program.spaces if s.blocks]
    pending = [s for s in program.spaces if s.sharded and s != atoms and not s.blocks]
    while pending or joined:
        complete = [s for s in joined if all(b in owned for b in s.blocks)]
        owned += complete
        joined = [s for s in joined if s not in complete]
        if not pending:
            break
        ready = [s for s in pending if any(p.target in owned for p in _from(program, s))]
        space = min(ready, key=lambda s: len({p.target for p in _from(program, s) if p.target.sharded} - {*owned, s}))
        candidates = [p for p in _from(program, space) if p.target in owned and p.target != space]
        best = max(candidates, key=lambda p: (not p.several, traffic[p.origin], -p.input))
        chosen.add(best.origin)
        owned.append(space)
        pending.remove(space)
    pointers = tuple(dataclasses.replace(p, owner=p.origin in chosen) for p in program.pointers)
    spaces = (*owned, *(s for s in program.spaces if not s.sharded))
    return dataclasses.replace(program, pointers=pointers, spaces=spaces)


def _from(program: Placed, space: Space) -> list[Pointer]:
    """The pointers that tell the place of a space's rows: its own, else those of a list that it was joined into.

    A pointer into such a list tells no place: the place of its rows follows from that of the space's rows.
    """
    own = [p for p in program.pointers if p.source == space and space not in p.target.blocks]
    return own or [p for p in program.pointers if space in p.source.blocks and p.target != space]


def _traffic(program: Placed) -> dict[str, int]:
    """Bytes per row of all distinct tables that each pointer reads or adds to."""
    by_name = {p.name: p for p in program.pointers}
    tables: dict[str, dict[object, int]] = defaultdict(dict)
    for node in program.graph.graph.nodes:
        for access in accesses(node):
            root = pointer_root(access.index)
            if root is not None and root.name in by_name:
                # One exchange serves all reads of a table, but each scatter has a table of its own.
                key = access.table if access.kind == "gather" else node
                tables[by_name[root.name].origin][key] = row_bytes(program, access)
    return defaultdict(int, {origin: sum(widths.values()) for origin, widths in tables.items()})


def row_bytes(program: Placed, access: Access) -> int:
    """Bytes in one row of the table of an access."""
    value = access.table.meta["val"]
    shape = program.shape(access.table)
    return math.prod(int(n) for i, n in enumerate(shape) if i != access.dim and n.is_Integer) * value.element_size()
