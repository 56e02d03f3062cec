"""The vocabulary of the compiler: index spaces, pointers, placements, and the program that passes rewrite."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import sympy
import torch
from torch import Tensor, fx

from .capture import Capture
from .graphs import graph_module

META = "distcompile"
"""Key of a node's `Placement` in ``node.meta``."""

WHOLE_RULE = "whole"
"""Rule of the placement of an operator that runs on all rows, on every rank."""


@dataclasses.dataclass(frozen=True)
class Space:
    """An index space: a set of rows, found from the program."""

    name: str
    symbol: sympy.Expr
    """The size of the space in the captured graph; on a rank it means the owned rows. A symbol, if it is sharded."""
    sharded: bool = True
    """False for spaces that every rank holds whole (graphs)."""
    blocks: tuple[Space, ...] = ()
    """Of a list that the model joins (each edge once more, the other way round): what its rows are rows of, one after
    another. They live where those do, so that a rank's rows are joined, and cut, as the whole list is."""
    halo_of: Space | None = None
    """The space whose halo rows on a rank are the rows of this one there."""
    some_of: Space | None = None
    """The space some of whose rows these are: those that pointers of `through` point at."""
    through: tuple[str, ...] = ()
    """Names of pointers."""
    all_of: Space | None = None
    """The space all of whose rows these are, on every rank."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


def halo_name(space: str) -> str:
    """The name of the halo rows of a space, where they are a space of their own."""
    return f"halo of {space}"


def all_rows_name(space: str) -> str:
    """The name of all rows of a space, where every rank holds them."""
    return f"all {space}"


@dataclasses.dataclass(frozen=True)
class Halo:
    """Owned and halo rows of a space, as a factor of a dimension."""

    space: Space

    def __str__(self) -> str:
        return f"{self.space}+halo"


@dataclasses.dataclass(frozen=True)
class Pointer:
    """An integer array over the rows of `source` whose values are rows of `target`."""

    name: str
    source: Space
    target: Space
    input: int
    """Index into the program's inputs."""
    origin: str = ""
    """Pointers of one origin hold the same values (a cast of another is the same pointer)."""
    owner: bool = False
    """True for the one pointer that decides which rank owns a row of `source`, or of its blocks that have no other."""
    identity: bool = False
    """True for ``arange(rows)``: row i points at row i."""
    dim: int = 0
    """The dimension that counts the rows of `source`; an ``edge_index [2, edges]`` used as it is has them in 1."""
    several: bool = False
    """Whether a row has more than one target: of these the first one may own it, and the others may be anywhere."""

    @property
    def leaves_rank(self) -> bool:
        """Whether a row may point at a row of another rank."""
        stays = self.identity or (self.owner and not self.several and not self.source.blocks)
        return self.target.sharded and not stays

    def by_rows(self, values: Tensor) -> Tensor:
        """The pointer's values with a row for each row of `source`.  # Shape: [rows of source, targets of a row]"""
        rows = values.movedim(self.dim, 0)
        return rows[:, None] if rows.dim() == 1 else rows.flatten(1)


Factor = Space | Halo | int
Dim = tuple[Factor, ...]
"""A dimension as a product, outermost factor first; () for a dimension that is whole on every rank."""


Reduction = Literal["sum", "amax", "amin"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a value is divided among ranks."""

    dims: tuple[Dim, ...] = ()
    partial: bool = False
    """Each rank holds a part (a summand, unless `reduction` says otherwise); all_reduce makes it whole."""
    rule: str = ""
    """Which rule decided so."""
    reduction: Reduction = "sum"
    """How the parts of a partial value make the whole."""

    @property
    def sharded(self) -> bool:
        return any(self.dims)

    def whole(self) -> Placement:
        """The same value after an all_reduce."""
        return dataclasses.replace(self, partial=False)


@dataclasses.dataclass(frozen=True)
class Access:
    """A use of a pointer: rows of `table` read (gather) or added to (scatter) where it points."""

    kind: Literal["gather", "scatter"]
    node: fx.Node
    table: fx.Node
    dim: int
    """The dimension of `table` that the pointer runs over."""
    index: fx.Node
    """The index operand; a view of the program input that holds the pointer."""
    dense: bool = True
    """The index has one dimension per row space only (not one entry per element as torch.gather takes)."""


InputKind = Literal[
    "size",
    "number",
    "rows",
    "pointer",
    "halo_size",
    "interior",
    "send_rows",
    "splits",
    "places",
    "owned",
    "order",
    "counts",
]


@dataclasses.dataclass(frozen=True)
class Input:
    """What the runtime passes for one placeholder of the program."""

    name: str
    kind: InputKind
    source: int = -1
    """For rows, pointers and numbers: which output of the index program."""
    space: Space | None = None
    """For sizes and halo plans: of which space. For pointers: the space pointed into. The places of some rows among a
    rank's halo rows are of the space that has these some."""
    label: str = ""
    """How the user knows the value, for messages."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Where row numbers of a table may lie that is whole on every rank."""

    source: int
    """Index into the outputs of the index program, of the row numbers."""
    rows: sympy.Expr
    label: str
    """How the user knows the row numbers, for messages."""
    negative: bool
    """Whether numbers may count from the end."""


@dataclasses.dataclass(frozen=True)
class Output:
    """Where one tensor of the model's result comes from."""

    source: Literal["graph", "index"]
    position: int
    """Index into the outputs of the graph, or of the index program."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A captured call on its way through the pipeline; each pass returns a new one.

    `index_program` runs once on the whole graph object: everything that only moves or computes integers. Its
    results are cut into rows for each rank; `graph` is what ranks run on them.
    """

    capture: Capture
    graph: fx.GraphModule
    tiled: fx.GraphModule | None = None
    """The graph as calls of regions that run block by block; what ranks run unless they differentiate."""
    differentiated: fx.GraphModule | None = None
    """What ranks run to differentiate, where it is not the graph itself."""
    index_program: fx.GraphModule | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    spaces: tuple[Space, ...] = ()
    halo_spaces: tuple[Space, ...] = ()
    """Spaces of halo rows, on which a rank computes what would cost more to send."""
    some_spaces: tuple[Space, ...] = ()
    """Some rows of a space: all that matter of a value that crosses."""
    least: tuple[tuple[str, int], ...] = ()
    """(space, bytes): what has to cross for each halo row, were work free: every value once, at its narrowest."""
    pointers: tuple[Pointer, ...] = ()
    ranges: tuple[Range, ...] = ()
    conditions: tuple[tuple[sympy.Symbol, int], ...] = ()
    """(symbol, index output): numbers that the model branched on, or took for sizes."""
    merged: tuple[tuple[sympy.Symbol, sympy.Expr], ...] = ()
    """Symbols that inference found to be the size of one space, with its representative."""
    may_be_less: frozenset[sympy.Symbol] = frozenset()
    """Numbers among these that may be less than their space has rows: the largest row number that anybody points at."""
    read: tuple[tuple[torch.Tensor, int], ...] = ()
    """(buffer, version): buffers of the model whose values were compiled in."""

    @property
    def row_spaces(self) -> tuple[Space, ...]:
        """All spaces that values have rows of on a rank."""
        return (*self.spaces, *self.halo_spaces)

    @property
    def is_current(self) -> bool:
        """Whether the values that were compiled in still are those of the model."""
        return all(buffer._version == version for buffer, version in self.read)

    @functools.cached_property
    def _merged(self) -> dict[sympy.Symbol, sympy.Expr]:
        return dict(self.merged)

    def size(self, value: Any) -> sympy.Expr:
        """A size (int, SymInt or expression) in the symbols of the spaces."""
        if isinstance(value, int):  # as most are
            return sympy.Integer(value)
        is_expression = not isinstance(value, torch.SymInt)  # of which a pass may have found more since
        expr = self.capture.raw_size(value) if is_expression else self.capture.size(value)
        while expr.free_symbols & self._merged.keys():
            expr = self.capture.size(expr.xreplace(self._merged))
        return expr

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The shape of a tensor node in the symbols of the spaces."""
        return tuple(self.size(n) for n in node.meta["val"].shape)

    def space_of(self, size: sympy.Expr) -> Space | None:
        """The space whose size `size` is, if any."""
        return next((s for s in self.row_spaces if s.symbol == size), None)

    def space(self, name: str) -> Space:
        """The space called `name`."""
        return next(s for s in self.spaces if s.name == name)


def placement(node: fx.Node) -> Placement | tuple[Placement, ...]:
    """The placement that the place pass gave to `node`."""
    return node.meta[META]  # type: ignore[no-any-return]


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers: run again, or in another order, it gives others."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def copy_tiled(program: Program) -> fx.GraphModule:
    """Return a copy of a program's tiled graph to rewrite. Regions are shared."""
    assert program.tiled is not None
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.tiled.graph, {}))
    return graph_module(program.tiled, graph)


def replace_tiled(program: Program, module: fx.GraphModule) -> Program:
    """Return `program` with a rewritten tiled graph, checked."""
    module.graph.lint()
    module.recompile()
    return dataclasses.replace(program, tiled=module)


def replace_graph(program: Program, module: fx.GraphModule, **changes: Any) -> Program:
    """Return `program` with a rewritten graph, checked."""
    module.graph.lint()
    module.recompile()
    return dataclasses.replace(program, graph=module, **changes)
