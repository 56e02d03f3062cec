"""Random pointers between atoms, edges and angles, divided among ranks: what the plan and the halo operators get."""

from __future__ import annotations

import dataclasses
from unittest import mock

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from distcompile.ir import Pointer, Space
from distcompile.runtime.division import plan
from distcompile.runtime.division.partition import Partition

ATOMS, EDGES, ANGLES = SPACES = tuple(Space(name, sympy.Symbol(name)) for name in ("atoms", "edges", "angles"))
POINTERS = (
    Pointer("sender", EDGES, ATOMS, 0, "sender"),
    Pointer("receiver", EDGES, ATOMS, 1, "receiver", owner=True),
    Pointer("first", ANGLES, EDGES, 2, "first", owner=True),
    Pointer("second", ANGLES, EDGES, 3, "second"),
    Pointer("ends", ANGLES, ATOMS, 4, "ends"),  # two atoms a row
    Pointer("itself", ATOMS, ATOMS, 5, "itself", identity=True),
)
SOME = Space("edges of second", EDGES.symbol, some_of=EDGES, through=("second",))
"""The edges that come second in an angle."""

FEWEST = 0
"""Fewest rows of a space in `cases`. To be 0 when ``plan.divide`` takes spaces without rows (see test_plan)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of three spaces, the values of every pointer between them, and a number of ranks."""

    sizes: dict[str, int]
    values: dict[str, Tensor]
    coordinates: tuple[Tensor, ...]
    parts: int
    spaces: tuple[Space, ...] = SPACES
    ranks: Tensor | None = None
    """Which rank owns each atom; None leaves that to the partitioner."""

    def divide(self) -> plan.Division:
        """The division among the ranks."""
        pointers = [p for p in POINTERS if p.source in self.spaces]
        some = (SOME,) if ANGLES in self.spaces else ()
        given = (self.spaces, pointers, self.sizes, self.values, self.coordinates, self.parts, None, some)
        if self.ranks is None:
            return plan.divide(*given)
        with mock.patch.object(plan, "partition", return_value=Partition(self.ranks, "given", 0.0, 1.0, 1.0)):
            return plan.divide(*given)

    def readers(self, space: Space, division: plan.Division) -> set[tuple[int, int]]:
        """Every (rank, row of `space`) that a row of this rank points at, one by one."""
        found = set()
        for pointer in POINTERS:
            if pointer.target == space:
                owners = division.ranks[pointer.source.name].tolist()
                values = self.values[pointer.name]
                targets = (values if values.dim() == 2 else values[:, None]).tolist()
                found |= {(owner, row) for owner, rows in zip(owners, targets, strict=True) for row in rows}
        return found


@st.composite
def cases(draw: st.DrawFn, parts: int | None = None) -> Case:
    """Cases with any rows missing: no atoms, no edges, ranks that own nothing, nothing to exchange."""
    parts = parts or draw(st.integers(1, 5))
    n_atoms = draw(st.integers(FEWEST, 12))
    n_edges = draw(st.integers(FEWEST, 25)) if n_atoms else 0
    n_angles = draw(st.integers(FEWEST, 20)) if n_edges else 0

    def pointer(rows: int, targets: int) -> Tensor:
        values = draw(st.lists(st.integers(0, max(targets - 1, 0)), min_size=rows, max_size=rows))
        return torch.tensor(values, dtype=torch.int64)

    values = {
        "sender": pointer(n_edges, n_atoms),
        "receiver": pointer(n_edges, n_atoms),
        "first": pointer(n_angles, n_edges),
        "second": pointer(n_angles, n_edges),
        "ends": pointer(2 * n_angles, n_atoms).reshape(n_angles, 2),
        "itself": torch.arange(n_atoms),
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    positions = (torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64),)
    return Case(
        sizes={"atoms": n_atoms, "edges": n_edges, "angles": n_angles},
        values=values,
        coordinates=draw(st.sampled_from([(), positions])),
        parts=parts,
        ranks=pointer(n_atoms, parts) if draw(st.booleans()) else None,
    )
