"""Put communication where a pointer may leave the rank.

    gather through a pointer that leaves the rank:
        y = index_select(x, 0, p)        =>   h = halo_exchange(x);  y = index_select(h, 0, p)
    scatter through such a pointer (backward of a gather, sums at both ends):
        z = index_add(zeros, 0, p, y)    =>   b = pad(zeros, halo);  c = index_add(b, 0, p, y);  z = halo_reduce(c)

Through an owner pointer, or ``arange``, nothing is needed. No pattern for backward passes exists or is needed. Where
pointers may leave the rank, an input tells how many rows' pointers do not: those rows come first (see `overlap`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ...ir import (
    META,
    Access,
    Dim,
    Distributed,
    Halo,
    Input,
    InputKind,
    Placed,
    Placement,
    Space,
    grown,
    placement,
)
from ...ir.graphs import copy_graph
from ...ir.operators import pointer_root
from ...ir.writer import described, write
from ...rules.indexing import accesses, reduction
from ...rules.levels import continues
from ...rules.messages import Message

aten = torch.ops.aten


def insert_halos(program: Placed) -> Distributed:
    """Return `program` with a halo exchange or reduction at every access that may leave the rank."""
    module, _ = copy_graph(program.graph)
    pointers = {p.name: p for p in program.pointers}
    plans = Plans(module.graph)
    chained: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        for access in accesses(node):
            root = pointer_root(access.index)
            pointer = pointers.get(root.name) if root is not None else None
            if pointer is None or not pointer.leaves_rank or not _dims(access.table)[access.dim]:
                continue
            if not pointer.source.blocks:
                plans.get(pointer.source, "interior")
            if access.kind == "gather":
                _exchange_before(node, access, pointer.target, plans)
            elif node not in chained:
                chained.update(_reduce_after(node, access, pointer.target, plans))
    return grown(program, Distributed, graph=module, inputs=(*program.inputs, *plans.inputs))


class Plans:
    """The inputs that describe the halo of each space, or some rows of it; made at first use."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.inputs: list[Input] = []
        self._last = [n for n in graph.nodes if n.op == "placeholder"][-1]
        self._nodes: dict[tuple[str, str], fx.Node] = {}
        self._sizes = {n.name: n for n in graph.nodes if n.op == "placeholder"}

    def get(self, space: Space, kind: InputKind) -> fx.Node:
        """The input of a kind for a space."""
        if (space.name, kind) not in self._nodes:
            with self.graph.inserting_after(self._last):
                node = self.graph.placeholder(f"{space.name}_{kind}".replace(" ", "_"))
            described(node, value=None, place=Placement(rule="halo plan"))
            self._last = node
            self._nodes[space.name, kind] = node
            self.inputs.append(Input(node.name, kind, space=space))
        return self._nodes[space.name, kind]

    def call(self, space: Space) -> tuple[fx.Node, fx.Node]:
        return self.get(space, "send_rows"), self.get(space, "splits")


def _dims(node: fx.Node) -> tuple[Dim, ...]:
    found = placement(node)
    assert isinstance(found, Placement)
    return found.dims


def _extended(node: fx.Node, dim: int, space: Space) -> Placement:
    dims = list(_dims(node))
    dims[dim] = (Halo(space),)
    return Placement(tuple(dims), rule="halo")


def _exchange_before(node: fx.Node, access: Access, space: Space, plans: Plans) -> None:
    send_rows, splits = plans.call(space)
    size = plans.get(space, "halo_size")
    with node.graph.inserting_before(node):
        sent = Message("exchange", access.table, send_rows, splits, access.dim, size)
        place = _extended(access.table, access.dim, space)
        whole = sent.written(node.graph, value=access.table.meta["val"], place=place)
    node.update_arg(0, whole)


def _reduce_after(node: fx.Node, access: Access, space: Space, plans: Plans) -> list[fx.Node]:
    """Pad the table that `node` and others add to, and reduce it after the last of them. Return all of them."""
    chain = _chain(node)
    send_rows, splits = plans.call(space)
    size = plans.get(space, "halo_size")
    base: Any = chain[0].args[0]
    dim = access.dim
    extended = _extended(base, dim, space)
    with node.graph.inserting_before(chain[0]):
        ndim = len(_dims(base))
        padding: list[Any] = [0, 0] * (ndim - dim - 1) + [0, size]
        neutral = {"sum": (), "amax": (-math.inf,), "amin": (math.inf,)}[reduction(node)]
        args = (base, padding, *neutral)
        padded = write(node.graph, aten.constant_pad_nd.default, args, value=base.meta["val"], place=extended)
    chain[0].update_arg(0, padded)
    last = chain[-1]
    with node.graph.inserting_after(last):
        sent = Message("reduce", last, send_rows, splits, dim, size, reduction=reduction(node))
        reduced = sent.written(node.graph, value=last.meta["val"], place=placement(last))
    last.replace_all_uses_with(reduced, delete_user_cb=lambda user: user is not reduced)
    for each in chain:
        each.meta = {**each.meta, META: extended}
    return chain


def _chain(node: fx.Node) -> list[fx.Node]:
    """The scatters that add to one table, one after the other; nothing else uses the table before the last."""
    chain = [node]
    while (before := continues(chain[0])) is not None:
        chain.insert(0, before)
    while len(chain[-1].users) == 1 and continues(user := next(iter(chain[-1].users))) is chain[-1]:
        chain.append(user)
    return chain
