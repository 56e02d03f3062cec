"""The division of rows among ranks, and what crosses between them, as records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir import Tiled
from ...predict.account import Collective, collectives
from ...predict.by_rank import needs
from ...runtime.division.plan import Division
from .records import Atoms, Ranks


def ranks(program: Tiled, sizes: dict[str, int], division: Division) -> Ranks:
    """What each rank owns, reads and sends.

    Args:
        program: the program as it runs.
        sizes: rows of every space.
        division: of these rows.
    """
    return Ranks(
        division.partition.method,
        {name: np.array(division.counts(name)) for name in division.ranks},
        {name: np.array(division.halo_counts(name)) for name in division.halo_keys},
        sum((_sent(c, division) for c in collectives(program) if c.space), np.zeros((division.parts,) * 2, np.int64)),
        np.array(needs(program, sizes, division)),
    )


def _sent(crossing: Collective, division: Division) -> np.ndarray:
    """Bytes of one collective, by the rank that owns rows and the rank that reads them.  # Shape: [owner, reader]"""
    if crossing.to_all:
        owned = np.array(division.counts(crossing.space))
        found = np.repeat(owned[:, None], division.parts, 1)
        np.fill_diagonal(found, 0)
        return found * crossing.row_bytes
    reader, row = _read(crossing.space, division)
    owner = division.owners(crossing.space).numpy()[row]
    counts = np.bincount(owner * division.parts + reader, minlength=division.parts**2)
    return counts.reshape(division.parts, division.parts) * crossing.row_bytes


def _read(space: str, division: Division) -> tuple[np.ndarray, np.ndarray]:
    """The reader and the row of every halo row of every rank."""
    reader, row = np.divmod(division.halo_keys[space].numpy(), max(len(division.owners(space)), 1))
    return reader, row


def atoms(
    space: str, division: Division, positions: np.ndarray, species: Sequence[str], cell: np.ndarray
) -> Atoms | None:
    """Where the atoms are, who owns them and who reads them; None if the rows of the space are not these atoms."""
    owner = division.owners(space).numpy()
    if len(owner) != len(positions):
        return None
    reader, row = _read(space, division)
    halo = tuple(row[reader == rank] for rank in range(division.parts))
    return Atoms(positions, tuple(species), cell, owner, halo)
