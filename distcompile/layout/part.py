"""The atoms, edges, bonds and angles of a part of a structure, from which recipes make tensors.

edges     pairs of atoms within a cutoff, both ways
bonds     one of the two edges of a pair
angles    two edges from the same atom, both shorter than another cutoff
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .neighbours import Pairs, without_pairs
from .structure import Frame, Structure

Kind = Literal["atoms", "edges", "short edges", "bonds", "angles"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The kind of the rows of an index space; what is shorter than a cutoff (A) has its own."""

    kind: Kind
    cutoff: float = 0.0

    def __str__(self) -> str:
        return self.kind + (f" within {self.cutoff:g} A" if self.cutoff else "")


@dataclasses.dataclass(frozen=True)
class Part:
    """Some atoms of a structure with the pairs that begin or end at owned ones."""

    structure: Structure
    pairs: Pairs
    vectors: Tensor  # Shape: [n_edges, 3], A
    made: dict[Rows, dict[Any, Tensor]] = dataclasses.field(default_factory=dict)
    """What was worked out before for the same pairs, of the rows of each kind."""

    @classmethod
    def of_atoms(cls, structure: Structure) -> Part:
        """All atoms of a structure, without pairs."""
        return cls(structure, without_pairs(len(structure)), torch.empty(0, 3, dtype=torch.float64))

    def keys(self, rows: Rows) -> Tensor:
        """A number for each edge, bond or short edge, the same on all ranks.  # Shape: [n_rows], int64"""
        keys = self.pairs.keys
        return keys if rows.kind == "edges" else self.once(rows, "keys", lambda: keys[self.edge_of(rows)])

    def count(self, rows: Rows) -> int:
        """The number of rows of a kind."""
        return len(self.pairs.atoms) if rows.kind == "atoms" else len(self._places(rows))

    def positions(self, frame: Frame) -> Tensor:
        """Positions of the atoms, A.  # Shape: [n, 3]"""
        s, atoms = self.structure, self.pairs.atoms
        if frame == "as given":
            return s.positions[atoms]
        return s.positions[atoms] - s.turns[atoms] @ s.cell

    def fractional(self, frame: Frame) -> Tensor:
        """Fractional coordinates of the atoms.  # Shape: [n, 3]"""
        s, atoms = self.structure, self.pairs.atoms
        return s.fractional[atoms] - (s.turns[atoms] if frame == "wrapped" else 0.0)

    def images(self, frame: Frame) -> Tensor:
        """The cells by which second atoms of edges are moved.  # Shape: [n_edges, 3]"""
        pairs = self.pairs
        if frame == "as given":
            return pairs.images
        turns = self.structure.turns[pairs.atoms]
        return pairs.images + turns[pairs.second] - turns[pairs.first]

    @functools.cached_property
    def lengths(self) -> Tensor:
        """Lengths of the edges, A.  # Shape: [n_edges]"""
        return self.vectors.norm(dim=1)

    def edge_of(self, rows: Rows) -> Tensor:
        """The edge that each row is.  # Shape: [n_rows], int64"""
        return self._places(rows)

    def angle_edges(self, rows: Rows) -> Tensor:
        """The two edges of each angle.  # Shape: [n_angles, 2], int64"""
        return self._places(rows)

    def number_of_edge(self, rows: Rows) -> Tensor:
        """The bond of each edge, or the number of an edge among short ones (-1 for others).  # Shape: [n_edges]"""

        def make() -> Tensor:
            places = self._places(rows)
            numbers = torch.full((len(self.pairs.first),), -1, dtype=torch.int64)
            numbers[places] = torch.arange(len(places))
            if rows.kind == "bonds":
                numbers[self.pairs.mirror[places]] = torch.arange(len(places))
            return numbers

        return self.once(rows, "number of each edge", make)

    def once(self, rows: Rows, what: Any, make: Callable[[], Tensor]) -> Tensor:
        """What depends on the rows of a kind alone: made when these change."""
        made = self._made_of(rows)
        if what not in made:
            made[what] = make()
        return made[what]

    def _made_of(self, rows: Rows) -> dict[Any, Tensor]:
        """What was made of the present rows of a kind."""
        made = self.made.setdefault(rows, {})
        if rows.cutoff:  # pairs may stay what they are while an edge becomes short
            short = (self.lengths <= rows.cutoff).nonzero().flatten()
            if "short" not in made or not torch.equal(made["short"], short):
                made.clear()
                made["short"] = short
        return made

    def _places(self, rows: Rows) -> Tensor:
        made = self._made_of(rows)
        if "places" not in made:
            if rows.kind == "angles":
                made["places"] = self._angles(made["short"])
            elif rows.kind == "short edges":
                made["places"] = made["short"]
            else:
                every = torch.arange(len(self.pairs.first))
                made["places"] = every if rows.kind == "edges" else every[self._stands_for_both()]
        return made["places"]

    def _stands_for_both(self) -> Tensor:
        """True for one of the two edges of each pair: they are shared out between their atoms."""
        pairs = self.pairs
        other = pairs.keys[pairs.mirror]
        lower = pairs.keys < other
        odd = (pairs.atoms[pairs.first] + pairs.atoms[pairs.second]) % 2 == 1
        return lower ^ (odd & (pairs.keys != other))

    def _angles(self, short: Tensor) -> Tensor:
        """Pairs of different short edges of the same atom."""
        first = self.pairs.first[short]  # ascending
        counts = torch.bincount(first, minlength=len(self.pairs.atoms))
        begins = counts.cumsum(0) - counts
        of_each = counts[first]
        one = torch.arange(len(short)).repeat_interleave(of_each)
        within = torch.arange(len(one)) - (of_each.cumsum(0) - of_each).repeat_interleave(of_each)
        two = begins[first][one] + within
        apart = one != two
        return torch.stack([short[one[apart]], short[two[apart]]], 1)
