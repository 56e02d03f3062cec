"""What was learned of a calculator: how its graph objects are made, and its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..ir.tree import Tree
from ..model import DistributedModel
from .layout import Layout
from .results import ResultRecipe
from .structure import Periodicity, Structure


@dataclasses.dataclass(frozen=True)
class Learned:
    """A way from structures to a calculator's results that goes around the package."""

    model: DistributedModel
    layout: Layout
    example: tuple[Any, ...]
    """A graph object of the package."""
    structures: tuple[Structure, ...]
    """Those that it was learned from."""
    paths: tuple[str, ...]
    tree: Tree
    results: Mapping[str, ResultRecipe]
    sizes: Mapping[str, float]
    """How large each result is in structures without symmetry: the least of the largest numbers of each structure."""
    species: frozenset[int]
    pbc: Periodicity
    sees: Periodicity
    """The directions that the package takes to be periodic."""
    arrays: frozenset[str]
    options: str = ""
    """What else the user says, in the atoms and in settings of the calculator, as a text."""

    def holds(self, structure: Structure, options: str) -> bool:
        """True if nothing about a structure is new."""
        return (
            structure.pbc == self.pbc
            and options == self.options
            and self.arrays == frozenset(structure.arrays)
            and self.species >= set(structure.numbers.unique().tolist())
        )
