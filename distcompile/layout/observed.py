"""What a package made of some structures, and what the compiled program knows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from ..errors import DistcompileError
from .structure import Structure


class NoRecipeError(DistcompileError):
    """A tensor that no recipe gives; the message says which."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a package made of a structure."""

    structure: Structure
    tensors: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Described:
    """What the compiled program knows of a leaf of the graph object."""

    path: str
    spaces: tuple[str, ...]
    """For each dimension, the index space that it ranges over; empty if none."""
    needed: bool
    """False if the program does not read it."""

    @property
    def space(self) -> str:
        """The space of its rows; empty if it has none.

        Raises:
            NoRecipeError: it has rows of several.
        """
        found = [space for space in self.spaces if space]
        if len(found) > 1:
            raise NoRecipeError(f"{self.path} has rows of {' and '.join(found)}")
        return found[0] if found else ""


def told_by_size(leaves: Sequence[Described], observations: Sequence[Observation]) -> list[Described]:
    """The leaves, with spaces for dimensions that the program does not tell: those that have as many rows everywhere.

    Of positions that are only looked up in the integer part of a program, the rows are not seen to be atoms.
    """
    known: dict[tuple[int, ...], str] = {tuple(len(o.structure) for o in observations): "atoms"}
    for at, leaf in enumerate(leaves):
        for dim, space in enumerate(leaf.spaces):
            if space:
                known.setdefault(tuple(o.tensors[at].shape[dim] for o in observations), space)
    found = []
    for at, leaf in enumerate(leaves):
        sizes = [tuple(o.tensors[at].shape[dim] for o in observations) for dim in range(len(leaf.spaces))]
        spaces = [s or (known.get(n, "") if len(set(n)) > 1 else "") for s, n in zip(leaf.spaces, sizes, strict=True)]
        found.append(dataclasses.replace(leaf, spaces=tuple(spaces)))
    return found


def columns(tensor: Tensor, leaf: Described) -> Tensor:
    """A tensor with its rows first, and all other dimensions as columns.  # Shape: [rows, columns]"""
    if not leaf.space:
        return tensor.reshape(1, -1)
    rows = tensor.movedim(leaf.spaces.index(leaf.space), 0)
    return rows.reshape(rows.shape[0], -1) if rows.numel() else rows.new_empty(rows.shape[0], rows[:1].numel() or 1)


def are_numbers_of(values: Tensor, rows: int) -> bool:
    """True if all values are numbers of that many rows."""
    return not values.numel() or (int(values.min()) >= 0 and int(values.max()) < rows)
