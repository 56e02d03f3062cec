"""Memory for the elements of one step of lanes: a place for each that is read in another turn, phase or product.

Places are given back after the last phase that reads them, so that what is in use stays in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .elements import Definition, Elements, Gather, Lookup, Product, Rows, Whole
from .loops import Plan
from .values import kind_of


@dataclasses.dataclass(frozen=True)
class Memory:
    """The place of each element that stands in memory, in vectors from the start of the part for its kind."""

    place: np.ndarray
    """-1 for elements that are not in memory."""
    size: Mapping[str, int]
    """Vectors in the part of each kind."""
    constants: Mapping[tuple[int, str], int]
    """Places that hold what is the same for all rows, by element and kind; written before the first row."""

    def places(self, elements: Elements, kind: str) -> np.ndarray:
        """The places of elements."""
        found = self.place[elements]
        for at in np.argwhere(found < 0):
            key = tuple(at)
            found[key] = self.constants[int(elements[key]), kind]
        return found  # type: ignore[no-any-return]


def laid_out(
    plan: Plan, definitions: Sequence[Definition], last_use: Mapping[int, int], constants: Sequence[tuple[int, str]]
) -> Memory:
    """Find a place for everything.

    Args:
        plan: says what is stored.
        definitions: in order.
        last_use: for a definition's position, the last phase that reads its elements.
        constants: what is the same for all rows, and read as if it were not: elements and kinds.
    """
    place = np.full(len(plan.stored), -1)
    size = dict.fromkeys("FDIB", 0)
    fixed = {}
    for element, kind in dict.fromkeys(constants):
        fixed[element, kind] = size[kind]
        size[kind] += 1
    used: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in size}
    """(first place, one after the last, last phase)"""
    for i, definition in sorted(enumerate(definitions), key=lambda d: int(plan.phase_of[d[1].elements[0]])):
        if isinstance(definition.what, Whole) or not plan.stored[definition.elements].any():
            continue
        phase = int(plan.phase_of[definition.elements[0]])
        offsets, count = _offsets(plan, definition)
        kind = kind_of(definition.dtype)
        used[kind] = [u for u in used[kind] if u[2] >= phase]
        start = fixed_size(fixed, kind)
        for first, end, _ in sorted(used[kind]):
            if start + count <= first:
                break
            start = max(start, end)
        used[kind].append((start, start + count, last_use.get(i, phase)))
        size[kind] = max(size[kind], start + count)
        place[definition.elements] = np.where(offsets >= 0, start + offsets, -1)
    return Memory(place, size, fixed)


def fixed_size(fixed: Mapping[tuple[int, str], int], kind: str) -> int:
    """The number of constants of a kind."""
    return sum(k == kind for _, k in fixed)


def _offsets(plan: Plan, definition: Definition) -> tuple[np.ndarray, int]:
    """The place of each element relative to the first one, and the number of places."""
    elements = definition.elements
    if isinstance(definition.what, Rows | Gather | Product | Lookup):
        first = int(definition.places.min())
        return definition.places - first, int(definition.places.max()) - first + 1
    vector, turn = plan.vector[elements], plan.turn[elements]
    if (vector < 0).any():  # a sum over turns
        return np.arange(len(elements)), len(elements)
    kept = np.unique(vector[plan.stored[elements]])
    rank = np.full(int(vector.max()) + 1, -1)
    rank[kept] = np.arange(len(kept))
    turns = int(turn.max()) + 1
    return np.where(rank[vector] >= 0, rank[vector] * turns + turn, -1), len(kept) * turns
