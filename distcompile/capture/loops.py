"""Loops over rows in Python, which would be unrolled for the example's rows.

    for i in range(n_atoms): triples.append(...)    =>    the function around it is captured as one step

A loop asks a size for a plain number. So do ``[0] * n`` and ``items[n]``, which make the example's rows the graph's in
the same way.
"""

from __future__ import annotations

from collections.abc import Set
from types import FrameType

import sympy
import torch

from ..ir.sizes import SMALLEST_SPACE
from .leaving_torch import Place, places_in


class Loops:
    """The places where sizes became plain numbers in the last capture, and those that were looked into."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[sympy.Expr, list[Place]]] = {}
        self._tried: set[str] = set()

    def start(self) -> None:
        """Begin to note anew."""
        self._seen.clear()

    def note(self, size: torch.SymInt, frame: FrameType) -> None:
        """Note that code of a frame asks for a size as a plain number."""
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if where not in self._seen and (size.node.hint or 0) >= SMALLEST_SPACE:
            self._seen[where] = (size.node._expr, list(places_in(_within_capture(frame))))

    def of(self, rows: Set[sympy.Symbol]) -> list[str]:
        """The places where numbers of rows became plain numbers."""
        return [where for where, (size, _) in self._seen.items() if size.free_symbols & rows]

    def learn(self, rows: Set[sympy.Symbol]) -> list[Place]:
        """The functions around a loop over rows that was not looked into before, innermost first."""
        for where in self.of(rows):
            if where not in self._tried:
                self._tried.add(where)
                return self._seen[where][1]
        return []


def _within_capture(frame: FrameType | None) -> list[FrameType]:
    """A frame and those that called it, from the capture inwards."""
    frames = []
    while frame is not None and frame.f_globals.get("__name__") != f"{__package__}.trace":
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]
