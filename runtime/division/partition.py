"""Divide atoms among ranks: several methods are tried, the partition with the shortest predicted step is kept.

    recursive coordinate bisection (RCB), METIS k-way, METIS recursive      and those near the best, refined by sweeps

All balance work (rows of every space that follow an atom) and keep neighbours together. None needs to be right: any
partition gives exact results, a good one gives few halo rows. Every rank divides the whole graph for itself, so nothing
here may depend on chance or on the rank.

Sources: Berger & Bokhari, IEEE Trans. Comput. C-36, 570 (1987) for bisection by coordinates; Karypis & Kumar,
SIAM J. Sci. Comput. 20, 359 (1998) for METIS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .readers import Array, Matrix, halo_rows, on_rank, readers
from .refine import refine

HALO = 0.25
"""The cost of a halo row, in units of the work that follows an owned atom on average."""

WORN = 1.02
"""A partition is kept while its step is at most so many times what it was when the partition was found."""

NEAR = 1.1
"""Partitions whose step is at most so many times the shortest are refined."""

SMALL = 5000
"""Atoms below which METIS k-way is the only METIS, and only the best partition is refined: a step is short, too."""

COARSE = 100
"""Atoms of a rank from which METIS k-way is held to 1 % more work than the mean; by itself it takes 3 %."""

MANY_EDGES = 4 * 10**7
"""Edges above which METIS, which takes some 200 bytes for each, is not tried."""


@dataclasses.dataclass(frozen=True)
class Partition:
    """The rank that owns each atom, and the quality of the partition."""

    ranks: Tensor  # Shape: [n_atoms], int64
    method: str
    halo_per_atom: float
    imbalance: float
    """Work of the busiest rank over the mean."""
    step: float
    """Predicted time of a step (of the slowest rank) over the time of the mean work without halo rows. It is that of
    the time when the partition was found: atoms may have moved since."""

    @classmethod
    def of(cls, ranks: Tensor, method: str, parts: int, work: Tensor | None = None) -> Partition:
        """A partition of which only the atoms of each rank are known, and perhaps the work for each atom."""
        counts = torch.bincount(ranks, work, minlength=parts).double()
        return cls(ranks, method, 0.0, float(counts.max() / counts.mean()), 1.0)


def partition(
    n_atoms: int,
    pairs: Tensor | None,
    work: Tensor,
    coordinates: Sequence[Tensor],
    parts: int,
    last: Partition | None = None,
) -> Partition:
    """Divide `n_atoms` atoms into `parts`.

    Args:
        n_atoms: number of atoms.
        pairs: neighbours (atom that is read, atom that reads), or None if the model has no edges between atoms.
            # Shape: [2, n_edges], int64
        work: rows of all spaces that follow each atom.  # Shape: [n_atoms], float64
        coordinates: candidates for positions; any linear image of positions serves.  # Shape of each: [n_atoms, 3]
        parts: number of ranks.
        last: the partition of the same atoms some time ago; kept while it is nearly as good as it was.
    """
    if parts == 1 or n_atoms == 0:
        return Partition(torch.zeros(n_atoms, dtype=torch.int64), "one rank", 0.0, 1.0, 1.0)
    pairs = torch.zeros(2, 0, dtype=torch.int64) if pairs is None else pairs.cpu()
    reading = readers(n_atoms, pairs)
    load = work.cpu().numpy()
    if n_atoms <= parts:
        return scored(np.arange(n_atoms), "an atom a rank", reading, load, parts)
    if last is not None and len(last.ranks) == n_atoms:
        now = scored(last.ranks.numpy(), last.method, reading, load, parts)
        if now.step <= WORN * last.step:
            return dataclasses.replace(now, step=last.step)
    found = [scored(bisect(scaled(x, pairs), work, parts).numpy(), "RCB", reading, load, parts) for x in coordinates]
    if not reading.nnz:
        found = found or [scored(_blocks(load, parts), "blocks", reading, load, parts)]
        return min(found, key=lambda p: p.step)
    reads = reading.T.tocsr()
    if not found or reading.nnz <= MANY_EDGES:
        for recursive in (False, True) if n_atoms >= SMALL else (False,):
            ranks = metis(reading, reads, load, parts, recursive)
            found.append(scored(ranks, "METIS recursive" if recursive else "METIS k-way", reading, load, parts))
    found.sort(key=lambda p: p.step)
    near = [p for p in found if p.step <= NEAR * found[0].step] if n_atoms >= SMALL else found[:1]
    for p in near:
        ranks = refine(reading, reads, p.ranks.numpy(), load, parts)
        found.append(scored(ranks, f"{p.method}, refined", reading, load, parts))
    return min(found, key=lambda p: p.step)


def scored(ranks: Array, method: str, reading: Matrix, work: Array, parts: int) -> Partition:
    """A partition with its cost.

    Args:
        ranks: the rank of each atom.  # Shape: [n_atoms], int64
        method: the name of the method that found it.
        reading: see `readers.readers`.
        work: rows of all spaces that follow each atom.  # Shape: [n_atoms], float64
        parts: number of ranks.
    """
    load = np.bincount(ranks, weights=work, minlength=parts)
    halo = halo_rows(reading @ on_rank(ranks, parts), ranks)
    mean = load.mean() or 1.0
    step = load + HALO * work.mean() * halo
    per_atom = float(halo.sum()) / len(ranks)
    return Partition(torch.from_numpy(ranks), method, per_atom, float(load.max() / mean), float(step.max() / mean))


def scaled(coordinates: Tensor, pairs: Tensor) -> Tensor:
    """Coordinates in units of the neighbours' distance along each axis, so that fractional ones tell long from short.

    The median over a sample, of distances that are not zero: few neighbours are images across the cell.
    """
    sample = pairs[:, :: max(1, pairs.shape[1] // 4096)]
    x = coordinates.detach().cpu().double()
    apart = (x[sample[0]] - x[sample[1]]).abs()
    medians = torch.where(apart > 0, apart, torch.nan).nanmedian(0).values if sample.shape[1] else x.new_ones(3)
    return x / torch.where(medians > 0, medians, 1.0)  # an axis without distances keeps its unit


def bisect(coordinates: Tensor, work: Tensor, parts: int) -> Tensor:
    """Recursive bisection along the longest axis, halves weighted by work. Returns the part of each atom."""
    ranks = torch.zeros(len(work), dtype=torch.int64)
    x, work = coordinates.detach().cpu().double(), work.cpu()
    pending = [(torch.arange(len(work)), 0, parts)]
    while pending:
        atoms, first, count = pending.pop()
        if count == 1 or len(atoms) == 0:
            ranks[atoms] = first
            continue
        span = x[atoms].amax(0) - x[atoms].amin(0)
        order = atoms[x[atoms, int(span.argmax())].argsort(stable=True)]
        left = count // 2
        cumulative = work[order].cumsum(0)
        cut = int(torch.searchsorted(cumulative, cumulative[-1] * left / count)) + 1
        cut = min(max(cut, min(left, len(order))), len(order))
        pending += [(order[:cut], first, left), (order[cut:], first + left, count - left)]
    return ranks


def metis(reading: Matrix, reads: Matrix, work: Array, parts: int, recursive: bool) -> Array:
    """METIS partition of the neighbour graph, k-way or recursive: the rank of each atom.

    Args:
        reading: see `readers.readers`.
        reads: its transpose.
        work: rows of all spaces that follow each atom.  # Shape: [n_atoms], float64
        parts: number of ranks.
        recursive: bisect again and again instead of dividing into all parts at once.
    """
    import pymetis

    both = reading if np.array_equal(reading.indices, reads.indices) else reading + reads  # METIS wants both directions
    weights = np.maximum(work, 1).round().astype(np.int64)
    uneven = pymetis.Options(ufactor=10) if len(work) >= COARSE * parts and not recursive else None
    graph = pymetis.CSRAdjacency(both.indptr, both.indices)
    _, ranks = pymetis.part_graph(parts, graph, vweights=weights, recursive=recursive, options=uneven)
    return np.asarray(ranks, dtype=np.int64)


def _blocks(work: Array, parts: int) -> Array:
    """Consecutive atoms, as much work for each rank."""
    blocks = np.cumsum(work) * parts // (work.sum() * (1 + 1e-12))
    return blocks.clip(0, parts - 1).astype(np.int64)
