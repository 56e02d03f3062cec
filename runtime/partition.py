"""Divide atoms among ranks: recursive coordinate bisection and METIS, scored, the better one kept.

Both balance work (rows of every space that follow an atom) and keep neighbours together. Neither needs to be right:
any partition gives exact results, a good one gives few halo rows.

Sources: Berger & Bokhari, IEEE Trans. Comput. C-36, 570 (1987) for bisection by coordinates; Karypis & Kumar,
SIAM J. Sci. Comput. 20, 359 (1998) for METIS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which rank owns each atom, and how good that is."""

    ranks: Tensor  # Shape: [n_atoms], int64
    method: str
    halo_per_atom: float
    imbalance: float
    """Work of the busiest rank over the mean."""

    @property
    def score(self) -> float:
        """Lower is better. A halo row costs about a quarter of the work that follows an owned atom."""
        return self.imbalance + 0.25 * self.halo_per_atom


def partition(n_atoms: int, pairs: Tensor | None, work: Tensor, coordinates: Sequence[Tensor], parts: int) -> Partition:
    """Divide `n_atoms` atoms into `parts`.

    Args:
        n_atoms: number of atoms.
        pairs: neighbours, or None if the model has no edges between atoms.  # Shape: [2, n_edges], int64
        work: rows of all spaces that follow each atom.  # Shape: [n_atoms], float64
        coordinates: candidates for positions; any linear image of positions serves.  # Shape of each: [n_atoms, 3]
        parts: number of ranks.
    """
    if parts == 1 or n_atoms == 0:
        return Partition(torch.zeros(n_atoms, dtype=torch.int64), "one rank", 0.0, 1.0)
    if n_atoms <= parts:
        return _scored(torch.arange(n_atoms), "an atom a rank", pairs, work, parts)
    candidates = [_scored(bisect(x, work, parts), "RCB", pairs, work, parts) for x in coordinates]
    if pairs is not None:
        candidates.append(_scored(metis(n_atoms, pairs, work, parts), "METIS", pairs, work, parts))
    if not candidates:
        blocks = torch.div(torch.cumsum(work, 0) * parts, work.sum() * (1 + 1e-12), rounding_mode="floor")
        candidates = [_scored(blocks.clamp_(0, parts - 1).long(), "blocks", pairs, work, parts)]
    return min(candidates, key=lambda p: p.score)


def bisect(coordinates: Tensor, work: Tensor, parts: int) -> Tensor:
    """Recursive bisection along the longest axis, halves weighted by work. Returns the part of each atom."""
    ranks = torch.zeros(len(work), dtype=torch.int64)
    x = coordinates.detach().cpu().double()
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


def metis(n_atoms: int, pairs: Tensor, work: Tensor, parts: int) -> Tensor:
    """METIS k-way partition of the neighbour graph. Returns the part of each atom."""
    import pymetis

    one, two = pairs.cpu()
    keys = torch.unique(torch.cat([one * n_atoms + two, two * n_atoms + one]))
    rows, columns = keys // n_atoms, keys % n_atoms
    rows, columns = rows[rows != columns], columns[rows != columns]
    starts = torch.searchsorted(rows, torch.arange(n_atoms + 1))
    _, ranks = pymetis.part_graph(
        parts,
        xadj=starts.numpy(),
        adjncy=columns.numpy(),
        vweights=work.clamp(min=1).round().long().numpy(),
        recursive=False,
    )
    return torch.as_tensor(ranks, dtype=torch.int64)


def _scored(ranks: Tensor, method: str, pairs: Tensor | None, work: Tensor, parts: int) -> Partition:
    load = torch.zeros(parts, dtype=work.dtype).index_add_(0, ranks, work)
    imbalance = float(load.max() / load.mean()) if load.sum() > 0 else 1.0
    halo = 0
    if pairs is not None:
        readers, owners = ranks[pairs[1]], ranks[pairs[0]]
        away = readers != owners
        halo = len(torch.unique(readers[away] * len(ranks) + pairs[0][away]))
    return Partition(ranks, method, halo / max(len(ranks), 1), imbalance)
