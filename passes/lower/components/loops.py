"""Loops over definitions: what runs together, over what, and which elements stand in memory.

    m = mul(h, w)      [128, 3]                  phase 0    for c in 128:  m0 = h[c] * w[3 c];  m1 = ...;  m2 = ...
    s = add(m, v)      [128, 3]          =>                                s0 = m0 + v[3 c];  ...
    y = s.sum(0)       [3]                                                 y0 += s0;  y1 += s1;  y2 += s2
    z = y @ weights    [3] x [3, 64]             phase 1    product

One dimension of a tensor, its widest, is the loop; all others are written out. A tensor that was made of another by
views may have its loop spread over one dimension in any order, so each element carries its turn: the pass of the loop
in which it is computed. Definitions whose elements need each other in the same turn share a loop. What is needed in
another turn, by a product, or later, goes through memory. Steps that need no more than what is there form a phase.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from .elements import Definition, Elements, Gather, Lookup, Pointwise, Product, Sum, Table, Whole, positions

WIDE = 16
"""The length from which on a dimension is looped over, not written out."""
LONG = 24
"""Terms from which on a sum is a loop."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A definition in a loop: `vectors` statements, `turns` times."""

    definition: Definition
    results: Elements
    """The element of each statement in each turn. Shape: [vectors, turns]."""
    operands: tuple[Elements, ...]
    """Each of shape [vectors, turns]; of a sum, [vectors, terms, turns]."""
    accumulates: bool = False
    """A sum over turns: `results` has one turn, and each statement adds to it."""

    @property
    def kinds(self) -> tuple[torch.dtype, ...]:
        """The dtype of each operand."""
        what = self.definition.what
        if not isinstance(what, Pointwise):
            return (self.definition.dtype,) * len(self.operands)
        kinds = (what.within,) * len(self.operands)
        return (torch.bool, *kinds[1:]) if what.function == "where" else kinds

    @property
    def turns(self) -> int:
        """The number of turns of its loop."""
        return int(self.operands[0].shape[-1])


@dataclasses.dataclass(frozen=True)
class Loop:
    """Statements that run together."""

    turns: int
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that need nothing of each other, but what is in the same loop."""

    loops: tuple[Loop, ...]
    blocks: tuple[Definition, ...]
    """Rows that are read, gathers, lookups and products: what stands in memory anyway."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All steps in order, and the elements that stand in memory."""

    phases: tuple[Phase, ...]
    phase_of: np.ndarray
    """The phase in which each element is computed; -1 for those of whole inputs and literals."""
    turn: np.ndarray
    vector: np.ndarray
    """The turn of each element, and the statement among those of its definition; -1 for elements outside of loops."""
    stored: np.ndarray
    """True for elements that stand in memory."""
    steps: Mapping[int, Step]
    """The steps of loops, by the position of their definition."""
    near: Mapping[int, tuple[np.ndarray, ...]]
    """For each operand of a step, True where a statement of the same loop computes it, in the same turn. Shape: that of
    the operand, without turns."""
    fixed: Mapping[int, tuple[np.ndarray, ...]]
    """The same, True where it is the same for all rows."""


def plan(
    table: Table,
    definitions: Sequence[Definition],
    outputs: Sequence[Elements],
    earliest: Mapping[int, int] | None = None,
) -> Plan:
    """Arrange definitions in loops and phases.

    Args:
        table: knows all elements.
        definitions: in an order in which they can be computed.
        outputs: the elements that are results.
        earliest: the phase before which a definition is not computed, by its first element.
    """
    return _Planner(table, definitions, earliest or {}).plan(outputs)


class _Planner:
    def __init__(self, table: Table, definitions: Sequence[Definition], earliest: Mapping[int, int]) -> None:
        self.definitions, self.earliest = definitions, earliest
        n = table.count
        self.owner = positions(table, definitions)
        self.same = np.ones(n, bool)
        """True for elements that are the same for all rows: they are in reach everywhere."""
        for definition in definitions:
            if not isinstance(definition.what, Whole):
                self.same[definition.elements] = False
        self.turn, self.vector = np.full(n, -1), np.full(n, -1)
        self.turns = np.zeros(n, np.int64)
        """The number of turns of the loop of each element; 0 for elements outside of loops."""
        self.steps: dict[int, Step] = {}

    def plan(self, outputs: Sequence[Elements]) -> Plan:
        self._label()
        phase = np.full(len(self.definitions), -1)
        for i, definition in enumerate(self.definitions):
            if not isinstance(definition.what, Whole):
                known = self.earliest.get(int(definition.elements[0]), 0)
                phase[i] = max(self._earliest(i, definition, phase), default=0)
                phase[i] = max(phase[i], known)
        phase_of = np.full(len(self.owner), -1)
        phase_of[self.owner >= 0] = phase[self.owner[self.owner >= 0]]
        near = {
            i: tuple(self._near(o, step.turns) & (phase_of[o[..., 0]] == phase[i]) for o in step.operands)
            for i, step in self.steps.items()
        }
        fixed = {i: tuple(self.same[o].all(-1) for o in step.operands) for i, step in self.steps.items()}
        stored = np.zeros(len(self.owner), bool)
        for output in outputs:
            stored[output] = True
        for definition in self.definitions:
            if isinstance(definition.what, Product | Gather | Lookup):
                stored[definition.operands[0]] = True
        for i, step in self.steps.items():
            for operand, computed, same in zip(step.operands, near[i], fixed[i], strict=True):
                stored[operand[~computed & ~same]] = True
        phases = tuple(self._phases(phase))
        return Plan(phases, phase_of, self.turn, self.vector, stored, self.steps, near, fixed)

    # ---- Turns.

    def _label(self) -> None:
        """Choose a loop for each definition: the turns of what it goes with, else a dimension of its own."""
        loops = [(i, d) for i, d in enumerate(self.definitions) if isinstance(d.what, Pointwise | Sum)]
        usual = _usual_length([d for _, d in loops])
        chosen: dict[int, Elements] = {}
        for i, d in loops:
            turn = self._as_operands(d)
            if turn is None and sum(n > 1 for n in d.shape) > 1 and not _is_long(d):
                turn = _widest(d, usual)
            if turn is not None:
                chosen[i] = turn
                self._set(d, turn)
        self._as_users([(i, d) for i, d in loops if not _is_long(d)], chosen)
        for i, d in loops:
            if i not in chosen and _is_long(d):
                self.steps[i] = self._accumulating(d)
                continue
            if i not in chosen:
                turn, n = _widest(d, usual), len(d.elements)
                chosen[i] = turn if turn is not None else np.zeros(n, np.int64) if n < WIDE else np.arange(n)
                self._set(d, chosen[i])
            self.steps[i] = _arranged(d, chosen[i])
            self.vector[self.steps[i].results] = np.arange(len(self.steps[i].results))[:, None]

    def _set(self, d: Definition, turn: Elements) -> None:
        self.turn[d.elements] = turn
        self.turns[d.elements] = turn.max() + 1

    def _as_operands(self, d: Definition) -> Elements | None:
        for operand in d.operands:
            turn, turns = (x[operand].reshape(len(operand), -1) for x in (self.turn, self.turns))
            some = turns > 0
            column = some.argmax(1)[:, None]  # the first term that has a turn
            first, length = (np.take_along_axis(x, column, 1)[:, 0] for x in (turn, turns))
            in_step = (not _is_long(d)) or bool(((turn == first[:, None]) | ~some).all())
            if in_step and _is_even(length, first):
                return first
        return None

    def _as_users(self, loops: Sequence[tuple[int, Definition]], chosen: dict[int, Elements]) -> None:
        hint, length = self.turn.copy(), self.turns.copy()
        for i, d in reversed(loops):
            if i not in chosen and _is_even(length[d.elements], hint[d.elements]):
                chosen[i] = hint[d.elements]
                self._set(d, chosen[i])
            if i not in chosen:
                continue
            for operand in d.operands:
                columns = operand[:, None] if operand.ndim == 1 else operand
                for column in columns.T:
                    free = length[column] == 0
                    hint[column[free]] = chosen[i][free]
                    length[column[free]] = chosen[i].max() + 1

    def _accumulating(self, d: Definition) -> Step:
        """A long sum: its terms in the turns in which they are computed, or one a turn."""
        assert isinstance(d.what, Sum)
        n, terms = d.what.factors[0].shape
        turn = None
        for factor in d.what.factors:
            if _is_even(self.turns[factor].ravel(), self.turn[factor].ravel()):
                length = int(self.turns[factor].flat[0])
                counts = np.stack([np.bincount(row, minlength=length) for row in self.turn[factor]])
                if (counts == terms // length).all() and terms % length == 0:
                    turn, turns = self.turn[factor], length
                    break
        if turn is None:
            turn, turns = np.broadcast_to(np.arange(terms), (n, terms)), terms
        order = np.argsort(turn, axis=1, kind="stable")
        arranged = tuple(
            np.take_along_axis(f, order, 1).reshape(n, turns, terms // turns).transpose(0, 2, 1) for f in d.what.factors
        )
        return Step(d, d.elements[:, None], arranged, accumulates=True)

    # ---- Phases.

    def _earliest(self, i: int, d: Definition, phase: np.ndarray) -> Iterator[int]:
        if i not in self.steps:
            for operand in d.operands:
                owners = self.owner[operand[~self.same[operand]]]
                if owners.size:
                    yield int(phase[owners].max()) + 1
            return
        for operand in self.steps[i].operands:
            near = self._near(operand, self.steps[i].turns)
            yield from phase[np.unique(self.owner[operand[near]])].tolist()
            far = operand[~near]
            far = far[~self.same[far]]
            if far.size:
                yield int(phase[self.owner[far]].max()) + 1

    def _near(self, operand: Elements, turns: int) -> np.ndarray:
        """True for rows of operands that one statement of the same loop computes, in the same turn. Shape: [..., V]."""
        owner, vector = self.owner[operand], self.vector[operand]
        same = (owner == owner[..., :1]) & (vector == vector[..., :1]) & (vector >= 0)
        same &= (self.turn[operand] == np.arange(turns)) & (self.turns[operand] == turns)
        return same.all(-1)  # type: ignore[no-any-return]

    def _phases(self, phase: np.ndarray) -> Iterator[Phase]:
        for number in range(phase.max(initial=-1) + 1):
            loops: dict[int, list[Step]] = defaultdict(list)
            blocks = []
            for i in np.flatnonzero(phase == number).tolist():
                if i in self.steps:
                    loops[self.steps[i].turns].append(self.steps[i])
                else:
                    blocks.append(self.definitions[i])
            yield Phase(tuple(Loop(turns, tuple(steps)) for turns, steps in sorted(loops.items())), tuple(blocks))


def _is_long(d: Definition) -> bool:
    return isinstance(d.what, Sum) and d.what.factors[0].shape[1] >= LONG


def _is_even(turns: np.ndarray, turn: np.ndarray) -> bool:
    """True if elements belong to loops of one length, and each turn has as many of them."""
    if not len(turns) or turns[0] <= 1 or not (turns == turns[0]).all():
        return False
    counts = np.bincount(turn, minlength=turns[0])
    return bool((counts == counts[0]).all())


def _usual_length(definitions: Sequence[Definition]) -> int:
    """The length of a wide dimension that most elements are spread over."""
    weights: dict[int, int] = defaultdict(int)
    for d in definitions:
        for n in {n for n in d.shape if n >= WIDE}:
            weights[n] += len(d.elements)
    return max(weights, key=lambda n: (weights[n], n), default=0)


def _widest(d: Definition, usual: int) -> Elements | None:
    """The place of each element along one dimension of its tensor, that of the usual length or the widest.

    None if none is wide, or it has gaps.
    """
    wide = [(n == usual, n, dim) for dim, n in enumerate(d.shape) if n >= WIDE]
    if not wide:
        return None
    _, n, dim = max(wide)
    turn = np.unravel_index(d.places, d.shape)[dim]
    counts = np.bincount(turn, minlength=n)
    return turn if (counts == counts[0]).all() else None


def _arranged(d: Definition, turn: Elements) -> Step:
    turns = int(turn.max()) + 1
    order = np.argsort(turn, kind="stable").reshape(turns, -1).T
    if isinstance(d.what, Sum):
        return Step(d, d.elements[order], tuple(f[order].transpose(0, 2, 1) for f in d.what.factors))
    return Step(d, d.elements[order], tuple(o[order] for o in d.operands))
