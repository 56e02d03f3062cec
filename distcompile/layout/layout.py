"""A layout: the recipes of all tensors of a graph object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .part import Part, Rows
from .recipes import Recipe


@dataclasses.dataclass(frozen=True)
class LeafRecipe:
    """How one tensor of the graph object is made."""

    path: str
    rows: Rows | None
    """The kind of its rows; None if it has none."""
    dim: int
    """The dimension of the rows."""
    rest: tuple[int, ...]
    """Its other dimensions."""
    dtype: torch.dtype
    device: torch.device
    recipes: Sequence[Recipe]
    """Of consecutive columns."""
    unused: Tensor | None
    """The example's tensor, if the program does not read its values."""

    def __str__(self) -> str:
        return f"{self.path}: {self.made or 'not read'}"

    @property
    def made(self) -> str:
        """What it is made of, in words; empty if nothing reads it."""
        return ", ".join(r.name for r in self.recipes)

    @property
    def depends_on_species_alone(self) -> bool:
        """True if the rows of all atoms stay the same as long as their species do."""
        return self.unused is not None or all(r.fixed for r in self.recipes)

    def __call__(self, part: Part) -> Tensor:
        """The tensor for a part of a structure."""
        if self.unused is not None:
            return self.unused if self.dim < 0 else self._in_shape(torch.zeros(self._count(part), *self.rest))
        if self.rows is not None and all(r.fixed for r in self.recipes):
            return part.once(self.rows, self.path, lambda: self._made(part))
        return self._made(part)

    def _count(self, part: Part) -> int:
        return part.count(self.rows) if self.rows is not None else 0

    def _made(self, part: Part) -> Tensor:
        made = [r.make(part).to(self.dtype) for r in self.recipes]
        return self._in_shape(made[0] if len(made) == 1 else torch.cat(made, 1))

    def _in_shape(self, found: Tensor) -> Tensor:
        if self.dim < 0:
            return found.reshape(self.rest).to(self.device, self.dtype)
        rows = found.reshape(found.shape[0], *self.rest).movedim(0, self.dim)
        return rows.to(self.device, self.dtype).contiguous()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a graph object is made of a structure."""

    cutoff: float
    """Of its edges, A; 0 if it has none."""
    kinds: Mapping[str, Rows]
    """What the rows of each index space are."""
    recipes: tuple[LeafRecipe, ...]
    """One for each leaf of the graph object."""
    ignored: tuple[tuple[int, int, int], ...] = ()
    """Numbers without a recipe, on which no result may depend: (leaf, first, one after the last)."""

    def leaves(self, part: Part) -> list[Tensor]:
        """The tensors of the graph object of a part of a structure, in the order of its leaves."""
        return [recipe(part) for recipe in self.recipes]

    def __str__(self) -> str:
        rows = [f"{space}: {rows}" for space, rows in self.kinds.items()]
        return "\n".join([f"edges within {self.cutoff:g} A", *rows, *map(str, self.recipes)])
