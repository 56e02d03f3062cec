"""The rows that an operator works on, and the number of barriers before it.

    positions ─ gather ─ edge vectors ─ message ─ scatter ─┐                    edges, level 1
                                              barrier      └─ node update ─ ... atoms, level 2

An operator is *row-local* over a space if each of its rows needs the same rows of its operands only. A barrier is
what needs all rows first: the table of a gather, the result of a scatter, a sum over rows, a collective. All row-local
operators of one space and level form a region, which can run block by block.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Container, Mapping
from typing import Any, Literal

import torch
from torch import fx

from ..ir import META, Placed, Placement, Space, owner_pointers
from ..ir.operators import facts, filled_with, pointer_root
from .indexing import accesses, reduction

aten = torch.ops.aten

Kind = Literal["row", "scatter", "reduce", "whole"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that a dimension of a value counts: ``factor`` consecutive entries a row."""

    space: Space
    dim: int
    factor: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """The part of one operator in the schedule."""

    kind: Kind
    level: int
    """The level of its region; for whole values, the level before which it runs."""
    space: Space | None = None
    """The space whose blocks it runs over."""

    @property
    def available(self) -> int:
        """The level from which on the complete value exists."""
        return self.level + 1 if self.kind != "whole" else self.level


def rows_of(node: fx.Node) -> Rows | None:
    """The rows of which a value has one slice each; None for whole values, tables with halo rows and mixtures."""
    found = node.meta.get(META)
    if isinstance(found, tuple):
        used = {user.args[1] for user in node.users}
        each = {_rows(p) for i, p in enumerate(found) if i in used}
        return each.pop() if len(each) == 1 else None
    return _rows(found) if isinstance(found, Placement) else None


def _rows(placement: Placement) -> Rows | None:
    given = [(i, dim) for i, dim in enumerate(placement.dims) if dim]
    if len(given) != 1:
        return None
    ((at, (first, *rest)),) = given
    if not isinstance(first, Space) or not all(isinstance(f, int) for f in rest):
        return None
    factor = 1
    for f in rest:
        assert isinstance(f, int)
        factor *= f
    return Rows(first, at, factor)


def is_size(node: Any) -> bool:
    """True if a node is a number, not a tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), int | torch.SymInt | torch.SymFloat)


def tables_of(node: fx.Node) -> set[fx.Node]:
    """Operands that `node` reads or adds to at rows other than its own: whole tables."""
    found = set()
    for access in accesses(node):
        placement = access.table.meta.get(META)
        if isinstance(placement, Placement) and (placement.dims[access.dim] or not placement.sharded):
            found.add(access.table)
    return found


def source_of(node: fx.Node) -> fx.Node | None:
    """The values that a scatter adds; None for other operators."""
    row = facts(node).rows
    return None if row is None or row.source is None else node.args[row.source]  # type: ignore[return-value]


def is_fresh(node: fx.Node) -> bool:
    """True if a value is made of zeros (or another neutral value) only, padding for halo rows included."""
    if node.target is aten.constant_pad_nd.default:
        inner, padding, value = (*node.args, 0)[:3]
        return not any(padding[::2]) and is_fresh(inner) and constant_of(inner) == value  # type: ignore[index,arg-type]
    return facts(node).fill is not None


def constant_of(fresh: fx.Node) -> Any:
    """The value that a fresh table is filled with."""
    while facts(fresh).fill is None:
        fresh = fresh.args[0]  # type: ignore[assignment]
    return filled_with(fresh)


def levels(program: Placed, near: Container[fx.Node] = ()) -> dict[fx.Node, Work]:
    """The `Work` of every operator of the rewritten graph, in order.

    Args:
        program: knows the place of every value.
        near: gathers and scatters that are no barriers, see `near_accesses`.
    """
    found: dict[fx.Node, Work] = {}
    order = {space: i for i, space in enumerate(program.row_spaces)}
    for node in program.graph.graph.nodes:
        if node.op == "call_function" and not is_size(node):
            found[node] = _work(node, found, order, near)
    return found


def near_accesses(program: Placed) -> set[fx.Node]:
    """Gathers from, and sums into, the rows that the rows of another space follow: from edges to their own atom.

    Rows that follow one another are on one rank, and may be put in one order. Then a stretch of atoms and that of their
    edges need no rows of other stretches, neither for such a gather nor for such a sum.
    """
    follows = {p.name for p in owner_pointers(program).values()}
    found: set[fx.Node] = set()
    for node in program.graph.graph.nodes:
        if node.op != "call_function" or len(used := accesses(node)) != 1:
            continue
        (access,) = used
        rows = rows_of(access.table)
        pointer = pointer_root(access.index)
        if not access.dense or pointer is None or pointer.name not in follows:
            continue
        if rows is None or access.dim != 0 or (rows.dim, rows.factor) != (0, 1):
            continue
        before = continues(node)
        goes_on = before in found and _source_space(before) == _source_space(node)
        if access.kind == "gather" or (is_simple(node) and (is_fresh(access.table) or goes_on)):
            found.add(node)
    return found


def _source_space(node: fx.Node | None) -> Space | None:
    """The space whose rows a scatter adds."""
    source = source_of(node) if node is not None else None
    rows = rows_of(source) if source is not None else None
    return rows.space if rows is not None else None


def continues(node: fx.Node) -> fx.Node | None:
    """The scatter whose table `node` adds to, if nothing else uses that table: they may run in one region."""
    if not is_simple(node):
        return None
    base: Any = node.args[0]
    if not is_simple(base) or len(base.users) > 1 or base is source_of(node):
        return None
    same = (accesses(base)[0].dim, reduction(base)) == (accesses(node)[0].dim, reduction(node))
    return base if same else None


def _work(node: fx.Node, found: dict[fx.Node, Work], order: Mapping[Space, int], near: Container[fx.Node]) -> Work:
    if node.target is operator.getitem and found[node.args[0]].kind == "whole":  # type: ignore[index]
        return found[node.args[0]]  # type: ignore[index]
    mine, source = rows_of(node), source_of(node)
    over = rows_of(source) if source is not None else None
    tables = tables_of(node)
    if over is not None and source is not None and tables and is_simple(node):
        base: Any = node.args[0]
        rest = {base} if not is_fresh(base) else set()
        locals_ = [n for n in node.all_input_nodes if n is not base]
        if all(_is_local(n, over.space) for n in locals_):
            before = found[base] if continues(node) is not None else None
            if before is not None and before.space is not None and order[before.space] <= order[over.space]:
                level = max(before.level, _level(locals_, set(), found, near))  # regions of a level run in this order
            else:
                level = _level(locals_, rest, found, near)
            return Work("scatter", level, over.space)
    elif source is not None and tables:
        pass  # several indices at once: done on complete values
    elif mine is not None:
        locals_ = [n for n in node.all_input_nodes if n not in tables]
        if all(_is_local(n, mine.space) for n in locals_):
            beside = {*locals_, *tables} if node in near else locals_
            return Work("row", _level(beside, tables - set(beside), found, near), mine.space)
    elif isinstance(node.meta[META], Placement) and node.meta[META].partial:
        spaces = {r.space for n in node.all_input_nodes if (r := rows_of(n)) is not None}
        if len(spaces) == 1:
            (space,) = spaces
            if not tables and all(_is_local(n, space) for n in node.all_input_nodes):
                return Work("reduce", _level(node.all_input_nodes, set(), found, near), space)
    inputs = [found[n] for n in node.all_input_nodes if n in found]
    return Work("whole", max((w.available for w in inputs), default=0))


def is_simple(node: fx.Node) -> bool:
    """True for a scatter that is one accumulation at one index. It runs block by block."""
    row = facts(node).rows
    if row is None or row.kind != "scatter":
        return False
    return not row.several or (len(found := accesses(node)) == 1 and found[0].index.meta["val"].dim() == 1)


def _is_local(node: fx.Node, space: Space) -> bool:
    """True if blocks of `space` can take this operand: it has rows of the space, or is the same for all rows."""
    if is_size(node) or node.op == "get_attr":
        return True
    rows = rows_of(node)
    if rows is not None:
        return rows.space == space
    placement = node.meta.get(META)
    return isinstance(placement, Placement) and not placement.sharded


def _level(rows: Any, complete: Any, found: dict[fx.Node, Work], near: Container[fx.Node]) -> int:
    """The level at which all operands are there: those of `rows` row by row, those of `complete` as a whole."""
    level = 0
    for node in rows:
        work = found.get(node)
        if work is not None:
            level = max(level, work.level if work.kind == "row" or node in near else work.available)
    for node in complete:
        if node in found:
            level = max(level, found[node].available)
    return level
