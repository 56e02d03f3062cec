"""Index spaces and the pointers between them."""

from __future__ import annotations

import dataclasses

import sympy
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Space:
    """An index space: a set of rows, found from the program."""

    name: str
    symbol: sympy.Expr
    """The size of the space in the captured graph; on a rank it means the owned rows. A symbol, if it is sharded."""
    sharded: bool = True
    """False for spaces that every rank holds whole (graphs)."""
    blocks: tuple[Space, ...] = ()
    """For a list that the model joins (each edge once more, the other way round): the spaces of its rows, one after
    another. Its rows live on the ranks of theirs, so that a rank's rows are joined, and cut, as the whole list is."""
    halo_of: Space | None = None
    """The space whose halo rows on a rank are the rows of this one there."""
    some_of: Space | None = None
    """The space that these rows are some rows of: those that pointers of `through` point at."""
    through: tuple[str, ...] = ()
    """Names of pointers."""
    all_of: Space | None = None
    """The space that these rows are all rows of, on every rank."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


def halo_name(space: str) -> str:
    """The name of the space of another space's halo rows."""
    return f"halo of {space}"


def all_rows_name(space: str) -> str:
    """The name of the space of all rows of another space, which every rank holds."""
    return f"all {space}"


@dataclasses.dataclass(frozen=True)
class Halo:
    """Owned and halo rows of a space, as a factor of a dimension."""

    space: Space

    def __str__(self) -> str:
        return f"{self.space}+halo"


Factor = Space | Halo | int
Dim = tuple[Factor, ...]
"""A dimension as a product, outermost factor first; () for a dimension that is whole on every rank."""


@dataclasses.dataclass(frozen=True)
class Pointer:
    """An integer array over the rows of `source` whose values are rows of `target`."""

    name: str
    source: Space
    target: Space
    input: int
    """Index into the program's inputs."""
    origin: str = ""
    """Pointers of one origin hold the same values (a cast of another is the same pointer)."""
    owner: bool = False
    """True for the one pointer that decides which rank owns a row of `source`, or of its blocks that have no other."""
    identity: bool = False
    """True for ``arange(rows)``: row i points at row i."""
    dim: int = 0
    """The dimension that counts the rows of `source`; an ``edge_index [2, edges]`` used as it is has them in 1."""
    several: bool = False
    """True if a row has more than one target. The first one may own it, and the others may be anywhere."""

    @property
    def leaves_rank(self) -> bool:
        """True if a row may point at a row of another rank."""
        stays = self.identity or (self.owner and not self.several and not self.source.blocks)
        return self.target.sharded and not stays

    def by_rows(self, values: Tensor) -> Tensor:
        """The pointer's values with a row for each row of `source`.  # Shape: [rows of source, targets of a row]"""
        rows = values.movedim(self.dim, 0)
        return rows[:, None] if rows.dim() == 1 else rows.flatten(1)
