"""Compute again in a later phase what costs more to keep.

    phase 1   a = x * w;  y = a + b          phase 1   y = x * w + b
    phase 4   z = a * g                =>    phase 4   a' = x * w;  z = a' * g

What is kept takes memory of each lane, and the memory of all lanes must fit the cache of a core. What is computed from
values that are in memory anyway, by a few multiplications, is computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .elements import Definition, Elements, Pointwise, Sum, Table, Whole, positions
from .loops import Plan

CHEAP = 24.0
"""Operations for each number, up to which it is computed again."""
FEW = 32
"""Numbers of a definition up to which they are kept."""
COSTS = {"div": 8.0, "sqrt": 8.0}
"""Operations that a function takes, if that is not one."""
DEAR = 40.0
"""The same for functions of Sleef."""
QUICK = ("add", "sub", "mul", "neg", "where", "as", "and", "or", "not", "lt", "le", "gt", "ge", "eq", "ne")


def recomputed(
    table: Table, definitions: Sequence[Definition], plan: Plan
) -> tuple[list[Definition], dict[int, int]] | None:
    """The definitions, with those again that a later phase computes for itself; None if there are none.

    The second result is the earliest phase of each definition that was added, by its first element.
    """
    return _Recomputer(table, definitions, plan).run()


class _Recomputer:
    def __init__(self, table: Table, definitions: Sequence[Definition], plan: Plan) -> None:
        self.table, self.definitions, self.steps = table, definitions, plan.steps
        self.owner = positions(table, definitions)
        self.phase = [int(plan.phase_of[d.elements[0]]) for d in definitions]
        self.cost = self._costs()
        self.copies: dict[tuple[int, int], Definition] = {}
        self.found: list[Definition] = []
        self.earliest: dict[int, int] = {}

    def _costs(self) -> list[float]:
        """Operations that it takes to compute a number of each definition from what is in memory anyway."""
        costs: list[float] = []
        for i, d in enumerate(self.definitions):
            if i not in self.steps or self.steps[i].accumulates:
                costs.append(0.0)
                continue
            what = d.what
            if isinstance(what, Sum):
                own = float((self.table.value(what.factors[0]) != 0).sum()) / len(d.elements)
            else:
                assert isinstance(what, Pointwise)
                own = 1.0 if what.function in QUICK else COSTS.get(what.function, DEAR)
            total = own
            for operand in d.operands:
                owners, counts = np.unique(self.owner[operand], return_counts=True)
                total += sum(
                    costs[o] * n / len(d.elements)
                    for o, n in zip(owners.tolist(), counts.tolist(), strict=True)
                    if o >= 0 and self._again(o, costs[o])
                )
            costs.append(total)
        return costs

    def _again(self, i: int, cost: float) -> bool:
        return i in self.steps and not self.steps[i].accumulates and cost <= CHEAP

    def run(self) -> tuple[list[Definition], dict[int, int]] | None:
        """Definitions in order, each copy before the first that reads it."""
        for i, d in enumerate(self.definitions):
            self.found.append(self._with_copies(i, d, self.phase[i]) if i in self.steps else d)
        return (self.found, self.earliest) if self.copies else None

    def _with_copies(self, i: int, d: Definition, phase: int) -> Definition:
        """A definition that reads copies, computed in its own phase, of what would come from an earlier one."""
        renamed = {}
        for operand in d.operands:
            for o in np.unique(self.owner[operand]).tolist():
                if o < 0 or isinstance(self.definitions[o].what, Whole):
                    continue
                earlier = self.phase[o] < phase and self._again(o, self.cost[o])
                if earlier and len(self.definitions[o].elements) > FEW and self._in_step(o, i):
                    renamed[o] = self._copy(o, phase)
        return _renamed(d, renamed, self.definitions, self.owner) if renamed else d

    def _in_step(self, o: int, i: int) -> bool:
        """True if two definitions have loops of one length."""
        return self.steps[o].turns == self.steps[i].turns

    def _copy(self, o: int, phase: int) -> Definition:
        key = (o, phase)
        if key not in self.copies:
            source = self._with_copies(o, self.definitions[o], phase)
            new = self.table.define(source.what, source.dtype, source.shape, source.places)
            self.copies[key] = self.table.definitions[-1]
            self.earliest[int(new[0])] = phase
            self.found.append(self.copies[key])
        return self.copies[key]


def _renamed(
    d: Definition, renamed: Mapping[int, Definition], definitions: Sequence[Definition], owner: np.ndarray
) -> Definition:
    def names(operand: Elements) -> Elements:
        result = operand.copy()
        for o, copy in renamed.items():
            chosen = owner[operand] == o
            at = np.searchsorted(definitions[o].elements, operand[chosen])
            result[chosen] = copy.elements[at]
        return result

    what = d.what
    if isinstance(what, Pointwise):
        what = dataclasses.replace(what, operands=tuple(map(names, what.operands)))
    elif isinstance(what, Sum):
        what = Sum(tuple(map(names, what.factors)))
    return dataclasses.replace(d, what=what)
