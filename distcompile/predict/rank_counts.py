"""The rows and messages of each of many ranks, counted from one division of the whole graph.

No rank's plan is made: rows, halo rows and the ranks that exchange them are histograms of who owns and who reads a row,
so a million atoms among 512 ranks take the memory of the graph and not of 512 plans.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..ir import Tiled, halo_name
from ..runtime.division.partition import Partition
from ..runtime.division.plan import Division
from .account import NOTHING, RowWork, stretches
from .by_rank import needs

Counts = np.ndarray
"""A number for each rank.  # Shape: [n_ranks], int64"""


@dataclasses.dataclass(frozen=True)
class SpaceCounts:
    """The rows of one space."""

    owned: Counts
    halo: Counts
    """Rows read and not owned: received in an exchange, sent in a reduction."""
    sent: Counts
    """Owned rows, counted once for each rank that reads them: sent in an exchange, received in a reduction."""
    reads: np.ndarray
    """True where one rank owns a row that another reads.  # Shape: [owner, reader], bool"""


@dataclasses.dataclass(frozen=True)
class RankCounts:
    """All ranks of a division."""

    parts: int
    partition: Partition
    spaces: dict[str, SpaceCounts]
    """The counts of every space. A space of some rows of another has as many owned rows as the other."""
    memory: Counts
    """Bytes of live tensors at the peak of each rank's evaluation, as `account.peak_bytes` predicts them."""
    some: frozenset[str] = frozenset()
    """Spaces that are some rows of another."""
    whole: RowWork = NOTHING
    """The work that every rank does on all rows, since no rule divides it."""

    @property
    def rows(self) -> dict[str, Counts]:
        """The rows that each rank computes on: its own rows of every space, and halo rows."""
        owned = {name: space.owned for name, space in self.spaces.items()}
        return owned | {halo_name(name): space.halo for name, space in self.spaces.items()}


def rank_counts(program: Tiled, sizes: dict[str, int], division: Division) -> RankCounts:
    """Count what every rank of a division holds.

    Args:
        program: a tiled program.
        sizes: rows of every space in the whole graph.
        division: who owns and who reads which rows.
    """
    spaces = {name: _space(division, name) for name in division.halo_keys}
    memory = np.array(needs(program, sizes, division))
    everywhere = [s.work for s in stretches(program, sizes)]
    whole = RowWork(sum(w.moved for w in everywhere), sum(w.flops for w in everywhere))
    return RankCounts(division.parts, division.partition, spaces, memory, frozenset(division.some), whole)


def _space(division: Division, name: str) -> SpaceCounts:
    parts, owners = division.parts, division.owners(name).numpy()
    reader, row = np.divmod(division.halo_keys[name].numpy(), max(len(owners), 1))
    owner = owners[row]
    between = np.bincount(owner * parts + reader, minlength=parts**2).reshape(parts, parts)
    return SpaceCounts(
        owned=np.bincount(owners, minlength=parts),
        halo=between.sum(0),
        sent=between.sum(1),
        reads=between > 0,
    )
