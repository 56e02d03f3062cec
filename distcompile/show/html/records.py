"""The content of a page, as plain records: names, numbers and texts, and nothing of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

ONCE = "once"
"""The part of a program that runs once, on the whole graph."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """One node of a program."""

    part: str
    """`ONCE`, the name of a region whose body it belongs to, or nothing: the graph that every rank runs."""
    name: str
    operator: str
    gives: str
    """dtype and dimensions, spaces by name."""
    space: str
    """The space whose rows it has; empty for what is whole."""
    made_by: str
    """The pass that wrote it."""
    line: str
    """The model's line, short; empty if none is known. `Program.lines` has the code."""
    arguments: str
    inputs: tuple[str, ...]
    """Names of the nodes that it reads."""
    crosses: str = ""
    """For a collective, what crosses and why."""
    row_bytes: int = 0
    """For a collective, bytes of a row, or in all for a sum over ranks."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """The program after one pass."""

    name: str
    stage: str
    operators: tuple[Operator, ...]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the model's code, and those around it."""

    file: str
    number: int
    code: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, pass by pass."""

    spaces: tuple[tuple[str, str], ...]
    """Names of index spaces, atoms first, and how each is divided."""
    passes: tuple[Pass, ...]
    lines: Mapping[str, Line]


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The division of a graph object among ranks."""

    method: str
    owned: Mapping[str, np.ndarray]
    """Rows of each space that each rank owns.  # Shape of each: [n_ranks]"""
    halo: Mapping[str, np.ndarray]
    """Rows that each rank reads of others.  # Shape of each: [n_ranks]"""
    sent: np.ndarray
    """Bytes of an evaluation that cross between the rank that owns a row and one that reads it.
    # Shape: [owner, reader]"""
    memory: np.ndarray
    """Bytes of each rank at its peak, predicted.  # Shape: [n_ranks]"""


@dataclasses.dataclass(frozen=True)
class Atoms:
    """Where the atoms are, who owns them, and who reads them."""

    positions: np.ndarray  # Shape: [n_atoms, 3], A
    species: tuple[str, ...]
    cell: np.ndarray  # Shape: [3, 3], A
    owner: np.ndarray  # Shape: [n_atoms]
    halo: tuple[np.ndarray, ...]
    """For each rank, the atoms that it reads of others."""


@dataclasses.dataclass(frozen=True)
class Region:
    """A region of the tiled program, or a group of regions that run in step."""

    name: str
    space: str
    operators: int
    how: str
    """The code that it runs."""
    tables: int
    """Bytes that exist for all rows while it runs, on the fullest rank."""
    block: int
    """Bytes that exist for the blocks that run at one time."""
    seconds: tuple[float, ...]
    """Measured, for each rank."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was learned of a calculator's graph objects."""

    said: str
    rows: tuple[tuple[str, str], ...] = ()
    """What the rows of each index space are."""
    tensors: tuple[tuple[str, str, str], ...] = ()
    """For each tensor: its path, its dtype and dimensions, and its recipe; empty if nothing reads it."""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Predicted steps on one device."""

    device: str
    basis: str
    ranks: tuple[int, ...]
    strong: Mapping[str, tuple[float, ...]]
    """Seconds of each part of a step of this structure, by number of ranks."""
    weak: Mapping[str, tuple[float, ...]]
    """The same, where each rank has as many rows as on the most ranks."""
    graph: frozenset[str]
    """The parts that are work on the graph object."""


@dataclasses.dataclass(frozen=True)
class Growth:
    """What the fullest rank holds, by number of ranks."""

    ranks: tuple[int, ...]
    owned: Mapping[str, tuple[int, ...]]
    """By space."""
    halo: Mapping[str, tuple[int, ...]]
    received: tuple[int, ...]
    """Bytes of halo rows in an evaluation."""
    results: tuple[int, ...]
    """Bytes of results that are put together."""
    memory: tuple[int, ...]
    """Bytes at the peak."""


@dataclasses.dataclass(frozen=True)
class Page:
    """All that a page shows; a part that is None is left out."""

    title: str
    facts: tuple[tuple[str, str], ...]
    program: Program | None = None
    ranks: Ranks | None = None
    atoms: Atoms | None = None
    no_atoms: str = ""
    """Why there is no picture of the atoms."""
    regions: tuple[Region, ...] = ()
    layout: Layout | None = None
    scaling: tuple[Scaling, ...] = ()
    growth: Growth | None = None
