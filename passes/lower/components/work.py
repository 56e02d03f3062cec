"""The work of a program: operations and bytes of a row, of which the time on a device can be estimated."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from .target import BYTES

FUNCTION = 20.0
"""Operations of an exponential, a sine and the like."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one row. A multiplication with an addition is one operation."""

    operations: float = 0.0
    near: float = 0.0
    """Bytes read from and written to the memory of a row: cache, or shared memory."""
    far: float = 0.0
    """Bytes of inputs and results."""
    weights: float = 0.0
    """Bytes that are the same for all rows, which all rows of a step read at once."""

    def __add__(self, other: Work) -> Work:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Work(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * n for n in dataclasses.astuple(self)))


def moved(numbers: int, itemsize: int, kind: str, times: int = 1) -> Work:
    """The work of numbers that are read from inputs, written to results, or added to these (twice)."""
    return Work(near=numbers * BYTES[kind], far=numbers * itemsize * times)


def multiplied(rows: int, terms: int, width: int, kind: str) -> Work:
    """The work of a product with a matrix of weights."""
    products = rows * terms * width
    return Work(products, (products + rows * width) * BYTES[kind], weights=products * BYTES[kind])


def of_statements(lines: Sequence[str]) -> Work:
    """The work of statements, once."""
    total = Work()
    for line in lines:
        sums, products = len(re.findall(r" [+-] |\+=", _computed(line))), len(re.findall(r" [*] ", _computed(line)))
        calls = len(re.findall(r"\b(?!all|as|where|truth|number|sqrt)[a-z]\w*\(", line))
        operations = max(sums, products) + len(re.findall(r" / ", line)) * 8 + calls * FUNCTION
        near = sum(BYTES[kind.upper()] for kind in re.findall(r"\b([fdib])\[", line))
        total += Work(operations or 1.0, near)
    return total


def _computed(line: str) -> str:
    """A statement without what is in brackets: addresses."""
    return re.sub(r"\[[^\]]*\]", "", line)
