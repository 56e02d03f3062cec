"""Evaluate structures by a learned layout: each rank makes its rows of the graph object, or all do of all."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..errors import GuardError
from ..ir.tree import Leaf, flatten
from ..model import normally
from ..predict.by_rank import costs, needs
from ..predict.fit import memory_explained
from ..runtime.division.partition import Partition, bisect
from ..runtime.division.plan import Division
from ..runtime.division.shares import Share
from ..runtime.execution.agreement import checksum
from ..runtime.execution.executor import Executor
from ..runtime.execution.inputs import together
from ..runtime.execution.preparing import Prepared
from ..runtime.execution.shares import NotDivisibleError, OwnRows
from .learned import Learned
from .neighbours import Neighbours
from .part import Part
from .structure import Structure

MOVED = 3.0
"""Atoms are divided anew when one of them has moved so far since they were (A)."""


class Evaluator:
    """Evaluates structures by what was learned of a calculator."""

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self.why_whole = ""
        """Why every rank makes the whole graph object; empty if each makes its rows."""
        self._own: OwnRows | None = None
        self._second = 0.0
        """As of `Neighbours`."""
        self._executor: Executor | None = None
        self._neighbours: dict[int | None, Neighbours] = {}
        self._species: Tensor | None = None
        self._of_species: dict[int, Tensor] = {}
        self._divided: tuple[Structure, Tensor] | None = None
        self._work: Tensor | None = None

    def __call__(self, structure: Structure) -> dict[str, Any]:
        """The calculator's results for a structure."""
        learned = self.learned
        structure = structure.seen_as(learned.sees)
        own = self.own_rows()
        if own is not None:
            wanted = {recipe.source for recipe in learned.results.values()}
            try:
                with normally(), learned.model.lock, memory_explained(learned.model.world, self._predicted):
                    returned = own(Divided(self, structure), wanted)
            except NotDivisibleError as error:
                self.why_whole = str(error)
            except GuardError:
                pass  # this structure takes another branch of the model: another program serves it
            else:
                return {name: recipe(structure, returned) for name, recipe in learned.results.items()}
        part = self.part(structure, None, None)
        leaves = [Leaf(path, tensor) for path, tensor in zip(learned.paths, learned.layout.leaves(part), strict=True)]
        returned = [leaf.tensor for leaf in flatten(learned.model.on_leaves(leaves, learned.tree))[0]]
        return {name: recipe(structure, returned) for name, recipe in learned.results.items()}

    def _predicted(self) -> list[int]:
        """The bytes that each rank was expected to need in the last evaluation."""
        own = self._own
        if own is None or own.tally is None:
            return [0] * self.learned.model.world.size
        return needs(own.executor.running, own.sizes, own.tally)

    def statistics(self, structure: Structure) -> list[dict[str, Any]]:
        """`DistributedModel.stats` of the last evaluation, which was of this structure."""
        own, model = self._own, self.learned.model
        structure = structure.seen_as(self.learned.sees)
        if self.why_whole or own is None or own.tally is None:
            leaves = self.learned.layout.leaves(self.part(structure, None, None))
            return model.stats(*self.learned.tree.unflatten(leaves))
        found = costs(own.executor.running, own.sizes, own.tally, "by positions")
        return [
            row | {"peak_memory": row["peak_memory"] + held, "graph_memory": held}
            for row, held in zip(found, own.tally.graph_bytes, strict=True)
        ]

    def divided_whole(self, structure: Structure) -> tuple[Executor, Prepared, Division]:
        """The program, the whole graph object, and its division among the ranks, of the last evaluation.

        That was of this structure. Ranks that make their rows themselves have no such division, but rows as in it.
        """
        own, learned = self._own, self.learned
        structure = structure.seen_as(learned.sees)
        tensors = learned.layout.leaves(self.part(structure, None, None))
        if self.why_whole or own is None or own.tally is None:
            executor, prepared = learned.model.prepared(*learned.tree.unflatten(tensors))
            return executor, prepared, executor.layout(prepared).division
        executor, parts = own.executor, learned.model.world.size
        prepared = executor.prepare([Leaf(path, tensor) for path, tensor in zip(learned.paths, tensors, strict=True)])
        found = Partition.of(self.divided(structure, parts), "by positions", parts)
        return executor, prepared, executor.divide_as(prepared, found, parts)

    def part(self, structure: Structure, rank: int | None, ranks: Tensor | None) -> Part:
        """The part of a structure that a rank needs; without ranks, all of it."""
        if rank not in self._neighbours:
            owned = None if ranks is None else _owned(ranks, rank)
            self._neighbours[rank] = Neighbours(self.learned.layout.cutoff, owned, self._second)
        pairs, vectors = self._neighbours[rank](structure)
        return Part(structure, pairs, vectors, self._neighbours[rank].made)

    def of_all_atoms(self, structure: Structure, leaf: int) -> Tensor:
        """A tensor of the graph object that has no rows, or those of all atoms; kept while species are the same."""
        if self._species is None or not torch.equal(self._species, structure.numbers):
            self._species, self._of_species = structure.numbers, {}
        recipe = self.learned.layout.recipes[leaf]
        if leaf not in self._of_species:
            made = recipe(Part.of_atoms(structure))
            if not recipe.depends_on_species_alone:
                return made
            self._of_species[leaf] = made
        return self._of_species[leaf]

    def divided(self, structure: Structure, parts: int, work: Tensor | None = None) -> Tensor:
        """The rank of each atom; the same as long as atoms stay near where they were.

        Those of one rank have as many rows altogether as those of another, by what is known: `work` are the rows that
        follow each atom now, which are the best guess for those of later structures of as many atoms.
        """
        if work is not None:
            self._work = work
        elif self._divided is not None:
            then, ranks = self._divided
            same = torch.equal(then.numbers, structure.numbers) and torch.allclose(then.cell, structure.cell, rtol=0.05)
            if same and float((then.positions - structure.positions).abs().max()) < MOVED:
                return ranks
        known = self._work if self._work is not None and len(self._work) == len(structure) else None
        ranks = divide(structure, parts, known)
        self._divided, self._neighbours = (structure, ranks), {}
        return ranks

    def own_rows(self) -> OwnRows | None:
        """What runs the program on rows that ranks make themselves; None if each rank makes all rows."""
        if self.why_whole:
            return None
        current = self._executor is not None and self._executor.program.is_current and self._executor.running.is_current
        if self._own is None or not current:
            learned = self.learned
            self._executor = learned.model.executor_for(*learned.example)
            kinds = {rows: space for space, rows in learned.layout.kinds.items()}
            has_rows_of = [kinds[r.rows] if r.rows is not None and r.dim >= 0 else None for r in learned.layout.recipes]
            try:
                self._own = OwnRows(self._executor, learned.paths, has_rows_of)
            except NotDivisibleError as error:
                self.why_whole = str(error)
                return None
            if not self._reaches_far_enough(self._own):
                self.why_whole = "the model makes lists of rows that need atoms farther away than its edges reach"
                self._own = None
        return self._own

    def _reaches_far_enough(self, own: OwnRows) -> bool:
        """Find out of which atoms, beside its own, a rank needs pairs; true if that suffices."""
        layout = self.learned.layout
        for second in (0.0, max((r.cutoff for r in layout.kinds.values()), default=0.0), layout.cutoff):
            self._second = second
            if all(own.has_all_rows(_Alone(self, structure)) for structure in self.learned.structures):
                self.forget()
                return True
        self.forget()
        return False

    def forget(self) -> None:
        """Forget the neighbours that were found, and the division of atoms."""
        self._neighbours, self._divided, self._work = {}, None, None


class Divided:
    """A structure whose rows ranks make themselves."""

    def __init__(self, evaluator: Evaluator, structure: Structure) -> None:
        self._evaluator, self._structure = evaluator, structure

    def __len__(self) -> int:
        return len(self._structure)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of positions, cell and species."""
        s = self._structure
        return f"{len(s)} {together([checksum(tensor) for tensor in (s.positions, s.cell, s.numbers)])}"

    def divided(self, parts: int, work: Tensor | None = None) -> Tensor:
        """The rank of each atom; by the rows that follow each, if these are given.  # Shape: [n_atoms], int64"""
        return self._evaluator.divided(self._structure, parts, work)

    def share(self, rank: int, ranks: Tensor) -> Share:
        """The rows of a rank."""
        alone = bool((ranks == rank).all())
        part = self._evaluator.part(self._structure, rank, None if alone else ranks)
        layout = self._evaluator.learned.layout
        keys = {space: part.keys(rows) for space, rows in layout.kinds.items() if rows.kind not in ("atoms", "angles")}
        return Share(layout.leaves(part), part.pairs.atoms, keys)

    def of_all_atoms(self, leaf: int) -> Tensor:
        """A tensor of the graph object that has no rows, or those of all atoms."""
        return self._evaluator.of_all_atoms(self._structure, leaf)


class _Alone(Divided):
    """The same, with nothing kept from one rank to the next."""

    def share(self, rank: int, ranks: Tensor) -> Share:
        """The rows of a rank."""
        self._evaluator.forget()
        return super().share(rank, ranks)


def _owned(ranks: Tensor, rank: int | None) -> Tensor:
    """The atoms of a rank, ascending."""
    mine: Tensor = ranks == rank  # type: ignore[assignment]
    return mine.nonzero().flatten()


def divide(structure: Structure, parts: int, work: Tensor | None = None) -> Tensor:
    """The rank of each atom: the cell is halved again and again, so that each part has as many rows.

    Args:
        structure: the atoms.
        parts: number of ranks.
        work: rows that follow each atom; by default all have as many.  # Shape: [n_atoms], float64
    """
    if parts == 1:
        return torch.zeros(len(structure), dtype=torch.int64)
    positions = structure.positions - structure.turns @ structure.cell
    return bisect(positions, torch.ones(len(structure), dtype=torch.float64) if work is None else work, parts)
