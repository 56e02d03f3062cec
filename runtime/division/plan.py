"""For each space: the rows that each rank owns, the rows that it reads, and the rows that ranks send each other.

Every rank has the whole graph object, so each can work out every other rank's halo and no message is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...ir import Pointer, Space
from .partition import Partition, partition


@dataclasses.dataclass(frozen=True)
class SpacePlan:
    """The rows of one space on one rank."""

    owned: Tensor
    """Global numbers of the rows that this rank computes, ordered by `Division.turns`.  # Shape: [n_owned], int64"""
    halo: Tensor
    """Global numbers of the rows that this rank only reads, by owner.  # Shape: [n_halo], int64"""
    send_rows: Tensor
    """Local numbers of owned rows that other ranks read, by reader.  # Shape: [n_sent], int64"""
    splits: Tensor
    """Rows sent to and received from each rank.  # Shape: [2, n_ranks], int64"""
    interior: int
    """The number of owned rows without a pointer that leaves the rank. They come first."""


@dataclasses.dataclass(frozen=True)
class Division:
    """The division of all rows of a graph object among all ranks."""

    ranks: dict[str, Tensor]
    """Per space, the owner of each row."""
    halo_keys: dict[str, Tensor]
    """Per space, and for some rows of a space, reader * rows + row for every halo row of every rank, ascending."""
    turns: dict[str, Tensor]
    """Per space, the turn of each row: a rank's rows are ordered by it, and by place within one. Interior rows, whose
    pointers stay on the rank, have turn 0; of a joined list, the rows of one list follow those of another."""
    places: dict[str, Tensor]
    """Per space, the place of each row: rows that follow others stand in the order of those, and then by number."""
    partition: Partition
    parts: int
    some: dict[str, str] = dataclasses.field(default_factory=dict)
    """For each space of some rows of another space, that other space."""

    def owners(self, space: str) -> Tensor:
        """The owner of each row."""
        return self.ranks[self.some.get(space, space)]

    def counts(self, space: str) -> list[int]:
        """Rows owned by each rank."""
        return torch.bincount(self.ranks[space], minlength=self.parts).tolist()

    def halo_counts(self, space: str) -> list[int]:
        """Halo rows of each rank."""
        rows = max(len(self.owners(space)), 1)
        return torch.bincount(self.halo_keys[space] // rows, minlength=self.parts).tolist()

    def for_rank(self, rank: int) -> dict[str, SpacePlan]:
        """The plan of one rank for every space."""
        return {name: self._space(name, rank) for name in self.halo_keys}

    def _space(self, name: str, rank: int) -> SpacePlan:
        owners = self.owners(name)
        rows = max(len(owners), 1)
        readers, read = self.halo_keys[name] // rows, self.halo_keys[name] % rows
        owned, turns = torch.nonzero(owners == rank).flatten(), self.turns[self.some.get(name, name)]
        owned = owned[self._by_turn(self.some.get(name, name), turns)[owned].argsort(stable=True)]
        numbers = torch.empty(rows, dtype=torch.int64)
        numbers[owned] = torch.arange(len(owned))
        halo = read[readers == rank]
        halo = halo[owners[halo].argsort(stable=True)]
        mine = owners[read] == rank
        sent = read[mine]  # by reader, then by row: the order in which the reader expects them
        splits = torch.stack(
            [
                torch.bincount(readers[mine], minlength=self.parts),
                torch.bincount(owners[halo], minlength=self.parts),
            ]
        )
        return SpacePlan(owned, halo, numbers[sent], splits, int((turns[owned] == 0).sum()))

    def order(self, space: str) -> Tensor:
        """The rows that ranks own, as ranks order them, by rank.  # Shape: [rows], int64"""
        turns = self.turns[space]
        by_rank = self.ranks[space] * _count(turns) + turns
        return self._by_turn(space, by_rank).argsort(stable=True)

    def _by_turn(self, space: str, turns: Tensor) -> Tensor:
        """Numbers that order rows by turn, and by place within one."""
        return turns * len(turns) + self.places[space]


@dataclasses.dataclass(frozen=True)
class Tally:
    """Rows of each rank, as much of a division as predictions need."""

    graph_bytes: list[int]
    """Bytes of each rank's rows of the graph object."""
    parts: int
    ranks: Mapping[str, list[int]]
    """Owned rows of each space, by rank."""
    halo_keys: Mapping[str, list[int]]
    """Halo rows, likewise."""

    def counts(self, space: str) -> list[int]:
        """Rows owned by each rank."""
        return self.ranks[space]

    def halo_counts(self, space: str) -> list[int]:
        """Halo rows of each rank."""
        return self.halo_keys[space]


def divide(
    spaces: Sequence[Space],
    pointers: Sequence[Pointer],
    sizes: Mapping[str, int],
    values: Mapping[str, Tensor],
    coordinates: Sequence[Tensor],
    parts: int,
    last: Partition | None = None,
    some: Sequence[Space] = (),
) -> Division:
    """Divide all rows among `parts` ranks.

    Args:
        spaces: sharded spaces in order of ownership, atoms first.
        pointers: all pointers between them.
        sizes: rows of each space.
        values: the values of each pointer, by its name.  # Shape: [rows of source, ...], integer
        coordinates: candidates for positions, see `partition`.
        parts: number of ranks.
        last: the previous division of the atoms, see `partition`.
        some: spaces that are some rows of others.
    """
    atoms = spaces[0]
    work = rows_of_atoms(spaces, pointers, sizes, values)
    found = partition(sizes[atoms.name], _pairs(atoms, pointers, values), work, coordinates, parts, last)
    return follow(spaces, pointers, sizes, values, found, parts, some)


def rows_of_atoms(
    spaces: Sequence[Space], pointers: Sequence[Pointer], sizes: Mapping[str, int], values: Mapping[str, Tensor]
) -> Tensor:
    """The rows of all spaces that follow each atom; arguments as of `divide`.  # Shape: [n_atoms], float64"""
    n_atoms = sizes[spaces[0].name]
    followed = _atoms_followed(spaces, pointers, sizes, values).values()
    return torch.stack([torch.bincount(atom, minlength=n_atoms) for atom in followed]).sum(0).double()


def follow(
    spaces: Sequence[Space],
    pointers: Sequence[Pointer],
    sizes: Mapping[str, int],
    values: Mapping[str, Tensor],
    found: Partition,
    parts: int,
    some: Sequence[Space] = (),
) -> Division:
    """The division of all rows among ranks that own these atoms; arguments as of `divide`."""
    follows = _atoms_followed(spaces, pointers, sizes, values)
    ranks = {name: found.ranks[atom] for name, atom in follows.items()}
    away = {p.name: _away(p, values, ranks) for p in pointers if p.leaves_rank}
    halo_keys = {s.name: _halo_keys(s, pointers, values, ranks, sizes, away) for s in spaces}
    wholes = {s.name: s.some_of.name for s in some if s.some_of is not None}
    for each in some:
        whole = wholes[each.name]
        halo_keys[each.name] = _some(halo_keys[whole], [values[name] for name in each.through], sizes[whole])
    turns, places = _turns(spaces, pointers, ranks, away), _places(spaces, pointers, sizes, values)
    return Division(ranks, halo_keys, turns, places, found, parts, wholes)


def _count(turns: Tensor) -> int:
    """The number of turns."""
    return int(turns.max()) + 1 if len(turns) else 1


def _turns(
    spaces: Sequence[Space], pointers: Sequence[Pointer], ranks: Mapping[str, Tensor], away: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Per space, the turn of each row in the order of its rank."""
    turns: dict[str, Tensor] = {}
    for space in spaces:
        if space.blocks:  # its rows are in the order in which those of its blocks are
            parts, first = [], 1
            for block in space.blocks:
                parts.append(turns[block.name] + first)
                first += _count(turns[block.name])
            turns[space.name] = torch.cat(parts)
            continue
        leaves = torch.zeros_like(ranks[space.name], dtype=torch.bool)
        for p in pointers:
            if p.source == space and p.leaves_rank:
                leaves |= away[p.name].any(1)
        turns[space.name] = leaves.long()
    return turns


def _places(
    spaces: Sequence[Space],
    pointers: Sequence[Pointer],
    sizes: Mapping[str, int],
    values: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Per space, the place of each row among those of all ranks, see `Division`."""
    places: dict[str, Tensor] = {}
    for space in spaces:
        places[space.name] = torch.arange(sizes[space.name])
        if space.blocks:
            places[space.name] = torch.cat([places[block.name] for block in space.blocks])
        for p in pointers:
            if p.source == space and p.owner and not space.blocks:
                before = places[p.target.name][_first(p, values)]
                if bool((before[1:] < before[:-1]).any()):
                    places[space.name][before.argsort(stable=True)] = torch.arange(sizes[space.name])
                break
    return places


def _atoms_followed(
    spaces: Sequence[Space],
    pointers: Sequence[Pointer],
    sizes: Mapping[str, int],
    values: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Per space, the atom that each row follows through owner pointers."""
    atoms, *others = spaces
    follows = {atoms.name: torch.arange(sizes[atoms.name])}
    for space in others:
        if space.blocks:
            follows[space.name] = torch.cat([follows[block.name] for block in space.blocks])
            continue
        own = [p for p in pointers if p.source == space and p.owner]
        owner = (own or [p for p in pointers if space in p.source.blocks and p.owner])[0]
        targets = _first(owner, values)
        if not own:  # the rows are the first block of them in a list that has the pointer
            before = owner.source.blocks[: owner.source.blocks.index(space)]
            targets = targets.narrow(0, sum(sizes[block.name] for block in before), sizes[space.name])
        follows[space.name] = follows[owner.target.name][targets]
    return follows


def _first(pointer: Pointer, values: Mapping[str, Tensor]) -> Tensor:
    """The first target of each row.  # Shape: [rows of source], int64"""
    return pointer.by_rows(values[pointer.name])[:, 0].long()


def _pairs(atoms: Space, pointers: Sequence[Pointer], values: Mapping[str, Tensor]) -> Tensor | None:
    """Both ends of the rows of the largest space that points at atoms twice: (the other end, the owner's end)."""
    for several in (False, True):  # two pointers are two ends; without such, one pointer may hold them both
        ends: dict[Space, dict[str, list[Tensor]]] = {}
        for p in sorted(pointers, key=lambda p: p.owner):
            if p.target == atoms and p.source != atoms and p.several <= several:
                ends.setdefault(p.source, {}).setdefault(p.origin, list(p.by_rows(values[p.name]).T.flip(0)))
        joined = [[end.long() for each in found.values() for end in each] for found in ends.values()]
        double = [found for found in joined if len(found) > 1]
        if double:
            return torch.stack(max(double, key=lambda found: len(found[0]))[-2:])
    return None


def _some(keys: Tensor, targets: Sequence[Tensor], rows: int) -> Tensor:
    """The keys whose rows are pointed at from anywhere."""
    chosen = torch.zeros(max(rows, 1), dtype=torch.bool)
    for rows_pointed_at in targets:
        chosen[rows_pointed_at.flatten().long()] = True
    return keys[chosen[keys % max(rows, 1)]]


def _away(pointer: Pointer, values: Mapping[str, Tensor], ranks: Mapping[str, Tensor]) -> Tensor:
    """True for targets that are not on the rank of their row.  # Shape: [rows of source, targets of a row]"""
    targets = pointer.by_rows(values[pointer.name]).long()
    return ranks[pointer.target.name][targets] != ranks[pointer.source.name][:, None]


def _halo_keys(
    space: Space,
    pointers: Sequence[Pointer],
    values: Mapping[str, Tensor],
    ranks: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    away: Mapping[str, Tensor],
) -> Tensor:
    """reader * rows + row of every row that some rank reads and does not own."""
    rows = max(sizes[space.name], 1)
    keys = [torch.empty(0, dtype=torch.int64)]
    seen: set[str] = set()
    for p in pointers:
        if p.target != space or not p.leaves_rank or p.origin in seen:
            continue
        seen.add(p.origin)
        targets = p.by_rows(values[p.name]).long()
        readers = ranks[p.source.name][:, None].expand_as(targets)
        gone = away[p.name]
        keys.append(torch.unique(readers[gone] * rows + targets[gone]))
    return torch.unique(torch.cat(keys))
