"""Move atoms at the boundary of a partition to another rank where that lowers the halo rows.

Moving atom v from rank p to rank q changes, among the atoms u of other ranks that v reads,

    gain   those that v alone reads on p:     a halo row of p less
    loss   those that no atom on q reads yet: a halo row of q more

and v itself becomes a halo row of p if an atom there reads it, and ceases to be one of q. All are sums over neighbours,
so products of sparse matrices count them for all atoms at once. Atoms move to ranks with higher numbers in one half of
a sweep and to lower ones in the other, or neighbours would change places. A half that does not help is taken back.

The objective, rows that are sent rather than edges that are cut, is that of Hendrickson & Kolda, Parallel Comput. 26,
1519 (2000); moves at the boundary with bounded imbalance are those of Fiduccia & Mattheyses, DAC (1982); many at once
are taken by Slota et al., IPDPS (2014).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .readers import Array, Matrix, halo_rows, on_rank, rows_of

SWEEPS = 3
WORTH_ANOTHER = 0.995
"""Halo rows after a sweep over those before it, above which it is the last."""

UNEVEN = 1.01
"""Work of the busiest rank over the mean that moves may lead to; 1.03 costs more than it saves."""


@dataclasses.dataclass(frozen=True)
class Moves:
    """Atoms, their new ranks, and the number of halo rows that each move saves if it is made alone."""

    atoms: Array
    targets: Array
    worth: Array

    def __getitem__(self, which: Array) -> Moves:
        return Moves(self.atoms[which], self.targets[which], self.worth[which])


def refine(readers: Matrix, reads: Matrix, ranks: Array, work: Array, parts: int) -> Array:
    """The rank of each atom after sweeps over the boundary; no more halo rows than before.

    Args:
        readers: see `readers.readers`.
        reads: its transpose.
        ranks: the rank of each atom before.  # Shape: [n_atoms], int64
        work: rows of all spaces that follow each atom.  # Shape: [n_atoms], float64
        parts: number of ranks.
    """
    counts = readers @ on_rank(ranks, parts)
    rows = halo_rows(counts, ranks).sum()
    most = UNEVEN * work.sum() / parts
    for _ in range(SWEEPS):
        before = rows
        for upwards in (True, False):
            found = _best(_moves(counts, reads, ranks, upwards))
            found = _fitting(found, work, most - np.bincount(ranks, weights=work, minlength=parts))
            if not len(found.atoms):
                continue
            after = _counts_after(counts, reads, ranks, found)
            moved = ranks.copy()
            moved[found.atoms] = found.targets
            fewer = halo_rows(after, moved).sum()
            if fewer < rows:
                ranks, counts, rows = moved, after, fewer
        if rows > WORTH_ANOTHER * before:
            break
    return ranks


def _moves(counts: Matrix, reads: Matrix, ranks: Array, upwards: bool) -> Moves:
    """Moves of one direction that lower the halo rows."""
    at = rows_of(counts)
    here = counts.indices == ranks[at]
    gain = _alone(counts, reads, ranks, at, here)
    stays = np.zeros(len(ranks), dtype=bool)
    stays[at[here]] = True
    gain += ~stays  # of v itself: a halo row of q less, and one of p more if an atom there reads it
    boundary = np.zeros(len(ranks), dtype=bool)
    boundary[at[~here]] = True
    atoms = np.flatnonzero(boundary & (gain > 0))
    # For each u, ranks on which it may be read without a new halo row: its own, and those that read it.
    present = counts + on_rank(ranks, counts.shape[1])
    present.data[:] = 1
    around = reads[atoms]
    known = around @ present
    rows = rows_of(known)
    worth = gain[atoms][rows] - (np.diff(around.indptr)[rows] - known.data)
    one_way = (known.indices > ranks[atoms][rows]) == upwards
    good = (worth > 0) & one_way & (known.indices != ranks[atoms][rows])
    return Moves(atoms[rows[good]], known.indices[good].astype(np.int64), worth[good])


def _alone(counts: Matrix, reads: Matrix, ranks: Array, at: Array, here: Array) -> Array:
    """For each atom, the atoms of other ranks that it alone reads on its rank."""
    lonely = counts.copy()
    lonely.data = ((counts.data == 1) & ~here).astype(counts.dtype)
    lonely.eliminate_zeros()
    atoms = np.flatnonzero(np.bincount(at[~here], minlength=len(ranks)))
    found = reads[atoms] @ lonely
    rows = rows_of(found)
    mine = found.indices == ranks[atoms][rows]
    gain = np.zeros(len(ranks), dtype=np.int64)
    gain[atoms[rows[mine]]] = found.data[mine]
    return gain


def _counts_after(counts: Matrix, reads: Matrix, ranks: Array, moves: Moves) -> Matrix:
    """Counts by rank of the atoms that read each atom, after moves: only atoms that moved ones read change."""
    parts = counts.shape[1]
    change = on_rank(moves.targets, parts) - on_rank(ranks[moves.atoms], parts)
    after = counts + reads[moves.atoms].T.tocsr() @ change
    after.eliminate_zeros()
    return after


def _best(moves: Moves) -> Moves:
    """The best move of each atom; of equally good ones, that to the lowest rank."""
    moves = moves[np.lexsort((moves.targets, -moves.worth, moves.atoms))]
    return moves[np.flatnonzero(np.diff(moves.atoms, prepend=-1))]


def _fitting(moves: Moves, work: Array, room: Array) -> Moves:
    """The best moves to each rank, as long as their work fits into its room."""
    moves = moves[np.lexsort((moves.atoms, -moves.worth, moves.targets))]
    first = np.flatnonzero(np.diff(moves.targets, prepend=-1))
    coming = np.cumsum(work[moves.atoms])
    earlier = (coming - work[moves.atoms])[first]
    coming -= np.repeat(earlier, np.diff(first, append=len(moves.atoms)))
    return moves[coming <= room[moves.targets]]
