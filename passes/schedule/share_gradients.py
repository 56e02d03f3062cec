"""The gradient of a largest value goes to all rows that have it, in equal shares, on whatever rank.

    t = scatter_reduce(b, 0, p, x, "amax")           m = halo_reduce(scatter_reduce(b, 0, p, x, "amax"), "amax")
    y = halo_reduce(t, "amax")                  =>   h = halo_exchange(m)
                                                     e = x == h[p]
                                                     s = halo_reduce(scatter_add(zeros, 0, p, e * (x - h[p])))
                                                     n = halo_reduce(scatter_add(zeros, 0, p, e))
                                                     y = m + s / n                           m and h are held fixed

s is zero, but its gradient is not. The table b has a share, too, where it is as large: it is left out of the picture.
A table that is whole on every rank takes an all_reduce for the halo_reduce, and no exchange. Ranks that only evaluate
do without all this: it goes into a graph of its own, for gradients that are taken outside. Largest values of all rows,
to which no pointer leads, `normalize` has written in the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...ir import Reduction, Tiled
from ...ir.graphs import copy_graph
from ...ir.writer import write
from ...rules.levels import is_fresh
from ...rules.messages import message
from ...runtime.operators.halo import all_reduce, all_reduces, halo_reduce, stop_gradient
from ...runtime.operators.whole import gather_rows
from ..normalize.normalize import WITHOUT_SELF
from ..normalize.reductions import is_held

aten = torch.ops.aten


def share_gradients(program: Tiled) -> Tiled:
    """Return `program` with gradients of largest values in the graph that is differentiated."""
    module, _ = copy_graph(program.differentiated)
    rewritten = False
    for node in list(module.graph.nodes):
        if node.target in _REWRITES:
            with module.graph.inserting_before(node):
                rewritten |= _REWRITES[node.target](node)
    if not rewritten:
        return program
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return dataclasses.replace(program, differentiated=module)


@dataclasses.dataclass(frozen=True)
class _Table:
    """The steps for a table that rows are written to.

    A table of this rank's rows alone needs none, which is the default.
    """

    pad: Callable[[fx.Node, float], fx.Node] = lambda rows, _: rows
    """Gives it room for halo rows, filled with a number."""
    complete: Callable[[fx.Node, Reduction], fx.Node] = lambda table, _: table
    """Combines the values that ranks wrote, by a reduction."""
    extend: Callable[[fx.Node], fx.Node] = lambda rows: rows
    """Puts halo rows beside it."""


def _after_halo_reduce(reduced: fx.Node) -> bool:
    """Share gradients behind a halo reduction of one scatter, or of several into one table.

    True if something changed.
    """
    sent = message(reduced)
    if sent is None or sent.reduction == "sum":
        return False
    chain: list[Any] = [sent.value]
    while chain[0].args[0].target is aten.scatter_reduce.two:
        chain.insert(0, chain[0].args[0])
    value, padding, _ = chain[0].args[0].args
    if not any(_has_gradient(scatter, value) for scatter in chain):
        return False
    graph = reduced.graph
    table = _Table(
        lambda rows, fill: write(graph, aten.constant_pad_nd.default, (rows, padding, fill), value=None),
        lambda table, how: dataclasses.replace(sent, value=table, reduction=how).written(graph, value=None),
        lambda rows: dataclasses.replace(sent, kind="exchange", value=rows, reduction="sum").written(graph, value=None),
    )
    for scatter in chain:
        value = _shared(scatter, value, table)
    reduced.replace_all_uses_with(value)
    return True


def _after_all_reduce(reduced: fx.Node) -> bool:
    operand: Any = reduced.args[0]
    if operand.target is not aten.scatter_reduce.two or not _has_gradient(operand, operand.args[0]):
        return False
    reduced.replace_all_uses_with(_whole(operand))
    return True


def _after_all_reduces(reduced: fx.Node) -> bool:
    """Share gradients of several values, each by itself: in one message, some would lend their gradient to others.

    True if something changed.
    """
    operands: Any = reduced.args[0]
    if reduced.args[1] == "sum" or not operands[0].meta["val"].is_floating_point():
        return False
    for part in reduced.users:
        operand: Any = operands[part.args[1]]  # type: ignore[index]
        if operand.target is aten.scatter_reduce.two:
            part.replace_all_uses_with(_whole(operand))
        else:  # a value of all rows, whose gradient goes another way
            held = write(reduced.graph, stop_gradient, (operand,), like=operand)
            part.replace_all_uses_with(write(reduced.graph, all_reduce, (held, reduced.args[1]), like=part))
    return True


def _on_the_rank(scatter: fx.Node) -> bool:
    """Share gradients among rows of the rank alone if their table was rewritten; else torch's gradient is right.

    True if something changed.
    """
    base: Any = scatter.args[0]
    is_sent = any(user.target in (all_reduce, all_reduces) for user in scatter.users)
    if is_sent or _counted(scatter, base) is base or not _has_gradient(scatter, base):
        return False
    scatter.replace_all_uses_with(_shared(scatter, base, _Table()))
    return True


_REWRITES: dict[Any, Callable[[fx.Node], bool]] = {
    halo_reduce: _after_halo_reduce,
    all_reduce: _after_all_reduce,
    all_reduces: _after_all_reduces,
    aten.scatter_reduce.two: _on_the_rank,
}


def _has_gradient(scatter: fx.Node, base: fx.Node) -> bool:
    """True if a gradient may go through a scatter to its values, or to the table."""
    source: Any = scatter.args[3]
    fixed = is_held(source) and (is_held(base) or is_fresh(base))
    return bool(source.meta["val"].is_floating_point()) and not fixed


def _whole(scatter: fx.Node) -> fx.Node:
    """A table that every rank holds, with the values that all ranks write to it."""
    call, base = _calls(scatter), scatter.args[0]
    return _shared(scatter, base, _Table(complete=lambda table, how: call(all_reduce, table, how)))  # type: ignore[arg-type]


def _calls(node: fx.Node) -> Callable[..., fx.Node]:
    """A function that writes operators into the graph of a node.

    Their values are never read, since the graph is only run.
    """
    return lambda target, *args, **kwargs: write(node.graph, target, args, kwargs, value=None)


def _shared(scatter: fx.Node, base: fx.Node, table: _Table) -> fx.Node:
    """A scatter of largest values into `base`, complete, and with its gradient."""
    call = _calls(scatter)
    args: Any = scatter.args
    _, dim, index, source, how = args[:5]
    rows, values = (call(stop_gradient, n) for n in (base, source))
    room = table.pad(rows, -math.inf if how == "amax" else math.inf)
    largest = table.complete(call(aten.scatter_reduce.two, room, dim, index, values, how), how)
    extended = table.extend(largest)
    zeros = call(aten.zeros_like.default, extended)

    def everywhere(own: fx.Node, written: fx.Node) -> fx.Node:
        added = table.complete(call(aten.scatter_add.default, zeros, dim, index, written), "sum")
        return call(aten.add.Tensor, own, added)

    theirs = call(aten.gather.default, extended, dim, index)
    kind = scatter.meta["val"].dtype
    count = everywhere(_equal(_counted(scatter, base), largest, kind), _equal(source, theirs, kind))
    total = everywhere(_off(base, largest, kind), _off(source, theirs, kind))
    return call(aten.add.Tensor, largest, call(aten.div.Tensor, total, count))


def _counted(scatter: fx.Node, base: Any) -> fx.Node:
    """The table that shares a gradient: as it is, or as it was before some of its rows were made not to count."""
    if WITHOUT_SELF in scatter.meta and base.target is aten.where.self:
        return base.args[2]  # type: ignore[no-any-return]
    if WITHOUT_SELF in scatter.meta and base.target is gather_rows:
        rows, *order = base.args
        inner = _counted(scatter, rows)
        return base if inner is rows else write(base.graph, gather_rows, (inner, *order), like=base)
    return base  # type: ignore[no-any-return]


def _equal(value: fx.Node, largest: fx.Node, kind: Any) -> fx.Node:
    """One where a value is the largest, zero elsewhere."""
    call = _calls(value)
    return call(aten._to_copy.default, call(aten.eq.Tensor, value, largest), dtype=kind)


def _off(value: fx.Node, largest: fx.Node, kind: Any) -> fx.Node:
    """Zero, with the gradient of the value where it is the largest.

    The difference of infinite values is not a number.
    """
    call = _calls(value)
    off = call(aten.nan_to_num.default, call(aten.sub.Tensor, value, largest), 0.0)
    return call(aten.mul.Tensor, off, _equal(value, largest, kind))
