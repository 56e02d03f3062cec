"""One rank's rows of a graph object that no rank has whole: the rows that it reads, and those that it sends.

Each rank has its own atoms and those near them, in numbers of its own. What they follow is owned as in a whole graph
object. Which rows others read of it, a rank is told by them: rows have keys, which are the same on all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...errors import RankError
from ...ir import Pointer, Space
from ..world import Communicator
from .partition import Partition
from .plan import SpacePlan, follow

_SCATTER = 0x9E3779B97F4A7C15 - 2**64
"""An odd number whose multiples are spread over all numbers of 64 bits."""


@dataclasses.dataclass(frozen=True)
class Share:
    """One rank's rows of a graph object, with those of other ranks that they need."""

    tensors: Sequence[Tensor]
    """The graph object's tensors, of these rows alone."""
    atoms: Tensor
    """Global numbers of the atoms: owned ones first, then others, both ascending.  # Shape: [n], int64"""
    keys: Mapping[str, Tensor]
    """For each space of the graph object's rows, a number for each row that is the same on all ranks."""


class Shares(Protocol):
    """A structure of which ranks make their rows themselves."""

    def __len__(self) -> int:
        """The number of atoms."""

    @property
    def digest(self) -> str:
        """A text that differs between ranks that have drifted apart."""

    def divided(self, parts: int, work: Tensor | None = None) -> Tensor:
        """The rank of each atom; by the rows that follow each, if these are given.  # Shape: [n_atoms], int64"""

    def share(self, rank: int, ranks: Tensor) -> Share:
        """The rows of a rank."""

    def of_all_atoms(self, leaf: int) -> Tensor:
        """A tensor of the graph object that has no rows, or those of all atoms."""


@dataclasses.dataclass(frozen=True)
class LocalPlan:
    """The plans of one rank, and what they were made of."""

    plans: dict[str, SpacePlan]
    wanted: dict[str, Tensor]
    """Keys of the halo rows of each space, by owner."""
    owned: dict[str, Tensor]
    """Keys of the owned rows of each space, in their order."""

    def reads_the_same(self, other: LocalPlan | None) -> bool:
        """True if the halo rows are the same."""
        return other is not None and all(
            torch.equal(keys, other.wanted[name])
            and torch.equal(self.plans[name].splits[1], other.plans[name].splits[1])
            for name, keys in self.wanted.items()
        )


def local_plan(
    spaces: Sequence[Space],
    pointers: Sequence[Pointer],
    sizes: Mapping[str, int],
    values: Mapping[str, Tensor],
    share: Share,
    ranks: Tensor,
    rank: int,
    parts: int,
    some: Sequence[Space],
) -> LocalPlan:
    """The rows that a rank owns and reads; what it sends is not known yet.

    Args:
        spaces, pointers, some: as for `divide`.
        sizes, values: as for `divide`, of the share's rows.
        share: the rank's rows.
        ranks: the rank of each atom of all.  # Shape: [n_atoms], int64
        rank: this rank.
        parts: number of ranks.
    """
    found = Partition(ranks[share.atoms], "by positions", 0.0, 1.0, 1.0)
    division = follow(spaces, pointers, sizes, values, found, parts, some)
    plans = division.for_rank(rank)
    keys = _keys(spaces, pointers, values, share)
    targets = {p.target.name for p in pointers if p.leaves_rank}
    read = {name: plan.halo for name, plan in plans.items() if division.some.get(name, name) in targets}
    wanted = {name: keys[division.some.get(name, name)][halo] for name, halo in read.items()}
    owned = {name: keys[division.some.get(name, name)][plan.owned] for name, plan in plans.items()}
    return LocalPlan(plans, wanted, owned)


def _keys(
    spaces: Sequence[Space], pointers: Sequence[Pointer], values: Mapping[str, Tensor], share: Share
) -> dict[str, Tensor]:
    """Keys of the rows of all spaces: rows that the model makes lists of have keys made of those that they point at."""
    keys = {spaces[0].name: share.atoms, **share.keys}
    for space in spaces:
        if space.name in keys:
            continue
        if space.blocks:
            parts = [_mixed(keys[block.name] + at) for at, block in enumerate(space.blocks)]
            keys[space.name] = torch.cat(parts)
            continue
        made: Tensor | None = None
        seen: set[str] = set()
        for p in sorted(
            (p for p in pointers if p.source == space and p.target.name in keys), key=lambda p: not p.owner
        ):
            if p.origin in seen or p.identity:
                continue
            seen.add(p.origin)
            for targets in p.by_rows(values[p.name]).long().unbind(1):
                of_target = keys[p.target.name][targets]
                made = of_target if made is None else _mixed(made) + of_target
        assert made is not None  # every row follows another one
        keys[space.name] = made
    return keys


def _mixed(keys: Tensor) -> Tensor:
    """Other numbers for different ones, without any order: those with another added are different, but for chance."""
    keys = (keys ^ (keys >> 32)) * _SCATTER
    return keys ^ (keys >> 29)


def requested(mine: LocalPlan, comm: Communicator) -> dict[str, tuple[Tensor, Tensor]]:
    """Per space, the keys of rows that others read of this rank, by reader, and how many each reads. All ranks ask."""
    found = {}
    ones = [1] * comm.size
    for name, keys in mine.wanted.items():
        receive = mine.plans[name].splits[1]
        send = comm.all_to_all(receive[:, None], ones, ones).flatten()
        found[name] = comm.all_to_all(keys, receive.tolist(), send.tolist()), send
    return found


def completed(mine: LocalPlan, requests: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, SpacePlan]:
    """The plans with the rows that this rank sends.

    Raises:
        RankError: others read rows that are not here, or that are here twice.
    """
    plans = dict(mine.plans)
    for name, (keys, send) in requests.items():
        plan = plans[name]
        if not len(keys):
            plans[name] = dataclasses.replace(plan, send_rows=keys, splits=torch.stack([send, plan.splits[1]]))
            continue
        ascending, order = mine.owned[name].sort()
        places = torch.searchsorted(ascending, keys)
        there = places < len(ascending)
        if not bool(there.all()) or bool((ascending[places] != keys).any() or (ascending[1:] == ascending[:-1]).any()):
            raise RankError(
                f"Ranks make rows of {name} in different ways, so one reads rows that another does not have. Let the "
                'package make the graph objects: distribute(..., graphs="stock").'
            )
        plans[name] = dataclasses.replace(plan, send_rows=order[places], splits=torch.stack([send, plan.splits[1]]))
    return plans
