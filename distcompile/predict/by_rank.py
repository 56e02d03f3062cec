"""The rows, messages and memory of each rank in an evaluation, from a division of the rows."""

from __future__ import annotations

from typing import Any

from ..ir import Tiled
from ..runtime.division.plan import Division, Tally
from .account import collectives, peak_bytes


def costs(program: Tiled, sizes: dict[str, int], division: Division | Tally, method: str) -> list[dict[str, Any]]:
    """The cost of an evaluation for each rank, as `DistributedModel.stats` gives it."""
    moved = [c for c in collectives(program) if c.space]
    predicted = needs(program, sizes, division)
    return [
        {
            "rank": rank,
            "owned": rows,
            "halo": halos,
            "bytes": sum(c.row_bytes * c.rows(rows, halos, sizes) for c in moved),
            "peak_memory": predicted[rank],
            "partition": method,
        }
        for rank, (rows, halos) in enumerate(rows_of_ranks(division))
    ]


def needs(program: Tiled, sizes: dict[str, int], division: Division | Tally) -> list[int]:
    """Per rank, the bytes that an evaluation is predicted to take at its peak."""
    return [peak_bytes(program, {**sizes, **rows}, halos) for rows, halos in rows_of_ranks(division)]


def rows_of_ranks(division: Division | Tally) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Per rank, the rows owned and the halo rows of every space."""
    owned = {name: division.counts(name) for name in division.ranks}
    halo = {name: division.halo_counts(name) for name in division.halo_keys}
    return [
        ({name: n[rank] for name, n in owned.items()}, {name: n[rank] for name, n in halo.items()})
        for rank in range(division.parts)
    ]
