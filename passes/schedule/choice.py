"""The work of each region: what it computes, what it loads, and what it hands over.

Operators of one level and space form a region (see `rules.levels`). It computes again what would cost more to keep
since an earlier region; a minimum cut decides (`store_or_recompute`). Regions that run in step (see
`runtime.execution.in_step`) form a group. What they pass to each other is not kept, so first it is decided for a group
as a whole what it loads, then for its regions what they pass.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from torch import Tensor, fx

from ...ir import Distributed, Space
from ...ir.operators import facts
from ...rules.cost import load_per_row, work_per_row
from ...rules.levels import is_fresh, is_size, levels, near_accesses, source_of, tables_of
from ..spaces.store_or_recompute import choose


class Choice:
    """The regions of a program, group by group."""

    def __init__(self, program: Distributed, hold: float, in_step: bool) -> None:
        """Arguments as of `tile`."""
        self.program, self.hold, self.in_step = program, hold, in_step
        self.nodes: list[fx.Node] = list(program.graph.graph.nodes)
        self.work = levels(program)
        self.near = near_accesses(program) if in_step else set()
        self.group = {n: w.level for n, w in (levels(program, self.near) if in_step else self.work).items()}
        """The group of each operator: the number of barriers before it at which all rows must be there."""
        self.stored = self._needed_complete()
        """Values that exist for all rows."""
        self.load = functools.cache(functools.partial(load_per_row, program))
        self.effort = functools.cache(functools.partial(work_per_row, program))
        self.once = {n for node in self.work for n in _compared(node)}
        self.computed: dict[int, set[fx.Node]] = {}
        """What each group computes."""
        for group in reversed(range(max(self.group.values(), default=0) + 1)):
            self._choose(group)

    def _needed_complete(self) -> set[fx.Node]:
        """Values that are needed whole: as a table, as a result, or for a collective. Of sums, those into rows that
        others follow; all other sums are complete anyway."""
        needed = set()
        for node, work in self.work.items():
            if not (work.kind == "row" or node in self.near) or is_fresh(node):  # zeros are made anew where needed
                continue
            users = [user for user in node.users if not is_size(user)]
            if any(self._wants_complete(user, node) for user in users):
                needed.add(node)
        return needed

    def _wants_complete(self, user: fx.Node, node: fx.Node) -> bool:
        if user.op == "output" or self.work[user].kind == "whole":
            return True
        return node in tables_of(user) and user not in self.near

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """Operands that are computed row by row, and that a block needs for its rows of `node` alone."""
        apart = set() if node in self.near else self._apart(node)
        return [n for n in node.all_input_nodes if self._is_row_local(n) and n not in apart and not self._is_new(n)]

    def _apart(self, node: fx.Node) -> set[fx.Node]:
        """Operands that a block does not take its own rows of."""
        base: set[fx.Node] = {node.args[0]} if self.work[node].kind == "scatter" else set()  # type: ignore[arg-type]
        return tables_of(node) | base

    def _is_row_local(self, node: fx.Node) -> bool:
        return node in self.work and (self.work[node].kind == "row" or node in self.near)

    def _is_new(self, node: fx.Node) -> bool:
        """True for a new table that a sum over near rows starts from."""
        return is_fresh(node) and all(user in self.near and user.args[0] is node for user in node.users)

    def _is_root(self, node: fx.Node) -> bool:
        """True for what a region hands over: sums, and values that are stored."""
        return node in self.stored or (self.work[node].kind in ("scatter", "reduce") and node not in self.near)

    def _choose(self, group: int) -> None:
        """Decide what the regions of a group compute. The values that they load become results of earlier groups."""
        roots = [n for n, g in self.group.items() if g == group and self.work[n].kind != "whole" and self._is_root(n)]
        if not roots:
            return

        def load_cost(node: fx.Node) -> float:
            if self.group[node] == group:
                return math.inf
            return self._rows_each(node) * self.load(node) * (1.0 if node in self.stored else 2.0 + self.hold)

        computed, loaded = choose(roots, self._operands, load_cost, self._work)
        self.computed[group] = computed
        self.stored |= loaded

    def _work(self, node: fx.Node) -> float:
        """The cost of computing a value once more."""
        if node in self.once:
            return math.inf
        if node in self.near and self.work[node].kind == "scatter":
            source = source_of(node)
            assert source is not None
            return 1.5 * self._rows_each(node) * self.load(source)
        return self._rows_each(node) * self.effort(node)

    def _rows_each(self, node: fx.Node) -> float:
        """Rows of the space that an operator works on, for each row of the first space; of the example."""
        space, hint = self.work[node].space, self.program.captured.hint
        if not self.in_step or space is None or space.halo_of is not None or not space.symbol.free_symbols:
            return 1.0
        return hint(space.symbol) / max(hint(self.program.spaces[0].symbol), 1)  # type: ignore[no-any-return]

    def regions(self, group: int) -> Iterator[tuple[Space, int, set[fx.Node], list[fx.Node]]]:
        """The regions of a group in order: space, level, what it computes, and what of that it hands over."""
        computed = self.computed.get(group, set())
        if not self.in_step:
            for space in self.program.row_spaces:
                mine = {n for n in computed if self.work[n].space == space}
                roots = [n for n in mine if self.group[n] == group and self._is_root(n)]
                if roots:
                    yield space, group, mine, roots
            return
        wanted, level_of = self._handed_over(group, computed), self._levels_within(computed)
        chosen: list[tuple[Space, int, set[fx.Node], list[fx.Node]]] = []
        spaces = self.program.row_spaces
        for level in sorted(set(level_of.values()), reverse=True):
            for space in reversed(spaces):
                roots = [n for n in wanted if self.work[n].space == space and level_of[n] == level]
                if roots:
                    nodes, loaded = choose(
                        roots,
                        functools.partial(self._operands_here, computed=computed, space=space),
                        functools.partial(self._load_here, level_of=level_of, level=level, wanted=frozenset(wanted)),
                        self._work,
                    )
                    wanted |= loaded
                    chosen.append((space, level, nodes, roots))
        yield from reversed(chosen)

    def _handed_over(self, group: int, computed: set[fx.Node]) -> set[fx.Node]:
        """What a region of a group hands over to another, or to a later group."""
        found = {n for n in computed if self.group[n] == group and self._is_root(n)}
        for node in computed & self.near:
            if self.work[node].kind == "scatter":
                found.add(node)
            found |= tables_of(node) & computed
        return {n for n in found if not self._is_new(n)}

    def _operands_here(self, node: fx.Node, computed: set[fx.Node], space: Space) -> list[fx.Node]:
        """Operands that a group computes as rows of one space."""
        apart = self._apart(node)
        return [
            n
            for n in node.all_input_nodes
            if n in computed and self.work[n].space == space and self.work[n].kind == "row" and n not in apart
        ]

    def _levels_within(self, computed: set[fx.Node]) -> dict[fx.Node, int]:
        """Per operator of a group, the number of regions before its own: as late as those that need it allow."""
        order = [n for n in self.nodes if n in computed]
        level: dict[fx.Node, int] = {}
        for node in order:
            before = [n for n in node.all_input_nodes if n in level]
            level[node] = max((level[n] + self._is_apart(n, node) for n in before), default=0)
        for node in reversed(order):
            after = [user for user in node.users if user in level]
            level[node] = min((level[user] - self._is_apart(node, user) for user in after), default=level[node])
        return level

    def _is_apart(self, node: fx.Node, user: fx.Node) -> bool:
        """True if an operator needs rows of another from an earlier region."""
        if self.work[node].kind == "scatter":
            return self.work[user].kind != "scatter" or user.args[0] is not node
        return self.work[node].space != self.work[user].space

    def _load_here(self, node: fx.Node, level_of: dict[fx.Node, int], level: int, wanted: frozenset[fx.Node]) -> float:
        """The cost of loading a value from an earlier region of the same group, for a stretch at a time."""
        if level_of[node] == level:
            return math.inf
        return self._rows_each(node) * self.load(node) * (1.0 if node in wanted else 2.0)


def _compared(node: fx.Node) -> Iterator[fx.Node]:
    """Values that an operator compares to the last bit, as the gradient of a maximum compares a value with the maximum.

    A value that is computed again, in blocks of other sizes, may round differently: matrix products do.
    """
    for value in node.all_input_nodes if facts(node).compares else ():
        while not isinstance(value.meta["val"], Tensor) or value.meta["val"].is_floating_point():
            if isinstance(value.meta["val"], Tensor):  # else several parts, one of which is compared
                yield value
            if not facts(value).view:
                break
            value = value.args[0]  # type: ignore[assignment]
