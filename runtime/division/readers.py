"""The readers of each atom, as sparse matrices: the halo of a candidate partition in time proportional to its edges.

    readers[i, j] = 1         atom j reads atom i: an edge of j's rank points at i
    counts = readers @ P      number of atoms of each rank that read atom i, where P[j, rank of j] = 1
    halo rows of rank q       atoms i of other ranks with counts[i, q] > 0

A product with P is a histogram for each row, so nothing is sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray
Matrix = Any
"""A ``scipy.sparse.csr_array``; scipy is loaded when a system is divided, not when the package is imported."""


def readers(n_atoms: int, pairs: Tensor) -> Matrix:
    """Atoms by the atoms that read them, each once; an atom does not count as its own reader.

    Args:
        n_atoms: number of atoms.
        pairs: (atom that is read, atom that reads).  # Shape: [2, n_edges], int64
    """
    from scipy.sparse import csr_array

    one, two = pairs.cpu().numpy()
    apart = one != two
    if not apart.all():
        one, two = one[apart], two[apart]
    small = np.int32 if max(n_atoms, len(one)) < 2**31 else np.int64
    ones = np.ones(len(one), dtype=np.int32)
    found = csr_array((ones, (one.astype(small), two.astype(small))), shape=(n_atoms, n_atoms))
    found.sum_duplicates()
    found.data[:] = 1
    return found


def on_rank(ranks: Array, parts: int) -> Matrix:
    """1 where an atom is on a rank.  # Shape: [n_atoms, parts]"""
    from scipy.sparse import csr_array

    n = len(ranks)
    return csr_array((np.ones(n, np.int32), ranks.astype(np.int32), np.arange(n + 1)), shape=(n, parts))


def rows_of(matrix: Matrix) -> Array:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def halo_rows(counts: Matrix, ranks: Array) -> Array:
    """Rows that each rank reads and does not own, from the readers of each atom on each rank."""
    away = counts.indices != ranks[rows_of(counts)]
    return np.bincount(counts.indices[away], minlength=counts.shape[1])
