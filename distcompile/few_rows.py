"""Few rows, no rows, one row: the choice of the program for a graph whose sizes are too small to tell.

Sizes below `SMALLEST_SPACE` are fixed in a program: vectors, cells and counts of graphs have 1 to 3 rows, and so has a
molecule of three atoms. A graph with another number in such a place is for another program.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ir import Placed
from .ir.sizes import SMALLEST_SPACE
from .ir.tree import Leaf


def differs_in_few_rows(leaves: Sequence[Leaf], example: Sequence[Leaf]) -> bool:
    """True if a graph has another number of rows in a place where the example had so few that the number is fixed.

    A dimension tells if all others of its tensor are as in the example: positions of 14 x 3 that are given as 3 x 14
    are a mistake. Tensors that were small altogether tell in any case.
    """
    return _have_same_paths(leaves, example) and any(
        _differs(leaf.tensor.shape, known.tensor.shape) for leaf, known in zip(leaves, example, strict=True)
    )


def _differs(shape: Sequence[int], known: Sequence[int]) -> bool:
    if len(shape) != len(known):
        return 0 in known and 0 not in shape  # an empty list may have any shape
    changed = [(n, k) for n, k in zip(shape, known, strict=True) if n != k]
    if any(k == 0 for _, k in changed):
        return True
    if max(known, default=0) < SMALLEST_SPACE and any(n >= SMALLEST_SPACE for n, _ in changed):
        return True
    return len(changed) == 1 and changed[0][1] < SMALLEST_SPACE


def has_more_rows(leaves: Sequence[Leaf], example: Sequence[Leaf]) -> bool:
    """True if a graph has enough rows to tell them by in a place where the example had too few."""
    if not _have_same_paths(leaves, example):
        return True
    pairs = [(leaf.tensor.shape, known.tensor.shape) for leaf, known in zip(leaves, example, strict=True)]
    return any(
        len(shape) != len(known) or any(k < SMALLEST_SPACE <= n for n, k in zip(shape, known, strict=True))
        for shape, known in pairs
    )


def _have_same_paths(leaves: Sequence[Leaf], example: Sequence[Leaf]) -> bool:
    return [leaf.path for leaf in leaves] == [leaf.path for leaf in example]


def fitted(program: Placed, leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves for a program.

    Empty lists get the form that the program takes: a package may make them in another one.
    """
    known = program.captured.leaves
    if all(leaf.tensor.numel() for leaf in leaves) or not _have_same_paths(leaves, known):
        return list(leaves)  # the most common case, in which no size is worked out
    sizes = program.captured.sizes
    rows = [[program.space_of(program.size(n)) is not None for n in shape] for shape in sizes]
    return [
        Leaf(leaf.path, _as_empty(leaf.tensor, example.tensor, is_rows))
        for leaf, example, is_rows in zip(leaves, known, rows, strict=True)
    ]


def _as_empty(given: Tensor, example: Tensor, is_rows: Sequence[bool]) -> Tensor:
    """An empty tensor in the form of the example, with no rows, if the example has rows."""
    if given.numel() or not any(is_rows) or not example.numel():
        return given
    shape = [0 if is_row else n for is_row, n in zip(is_rows, example.shape, strict=True)]
    same = given.dtype == example.dtype and given.dim() == len(shape)
    if same and all(n == m or is_row for n, m, is_row in zip(given.shape, shape, is_rows, strict=True)):
        return given
    return torch.empty(shape, dtype=example.dtype, device=given.device)
