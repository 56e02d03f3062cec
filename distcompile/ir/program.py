"""The program that passes rewrite: one record a stage, each with all that the stages before it found.

Captured -> Normal -> Split -> Placed -> Distributed -> Tiled -> Runnable
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, TypeVar

import sympy
import torch
from torch import fx

from .captured import Captured
from .graphs import graph_module
from .radial import Tabulated
from .spaces import Pointer, Space


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
    """The value that the runtime passes for one placeholder of the program."""

    name: str
    kind: InputKind
    source: int = -1
    """For rows, pointers and numbers: the index of their output of the index program."""
    space: Space | None = None
    """For sizes and halo plans: the space that they are of. For pointers: the space pointed into. For the places of
    some rows among a rank's halo rows: the space of these rows."""
    label: str = ""
    """The user's name of the value, for messages."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The row numbers that are allowed in a table that is whole on every rank."""

    source: int
    """Index of the row numbers among the outputs of the index program."""
    rows: sympy.Expr
    label: str
    """The user's name of the row numbers, for messages."""
    negative: bool
    """True if numbers may count from the end."""


@dataclasses.dataclass(frozen=True)
class Output:
    """The source of one tensor of the model's result."""

    source: Literal["graph", "index"]
    position: int
    """Index into the outputs of the graph, or of the index program."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """A captured call as one graph of operators, each thing said in one way."""

    captured: Captured
    graph: fx.GraphModule
    merged: tuple[tuple[sympy.Symbol, sympy.Expr], ...] = ()
    """Symbols that were found to be the size of one space, with its representative."""
    compiled_in: tuple[tuple[torch.Tensor, int], ...] = ()
    """(buffer, version): buffers of the model whose values the graph was made for, and weights that tables are of."""
    tabulated: tuple[Tabulated, ...] = ()
    """What is looked up in tables. For each, the graph returns the numbers that are outside of its range, after the
    tensors of the result."""
    untabulated: tuple[str, ...] = ()
    """What could have been looked up, and why it is not."""

    @property
    def is_current(self) -> bool:
        """True if the values that were compiled in still are those of the model."""
        return all(buffer._version == version for buffer, version in self.compiled_in)

    @functools.cached_property
    def _merged(self) -> dict[sympy.Symbol, sympy.Expr]:
        return dict(self.merged)

    def size(self, value: Any) -> sympy.Expr:
        """A size (int, SymInt or expression) in the symbols of the spaces."""
        if isinstance(value, int):  # the most common case
            return sympy.Integer(value)
        is_expression = not isinstance(value, torch.SymInt)  # a pass may have found more about it since
        expr = self.captured.raw_size(value) if is_expression else self.captured.size(value)
        while expr.free_symbols & self._merged.keys():
            expr = self.captured.size(expr.xreplace(self._merged))
        return expr

    def shape(self, node: fx.Node) -> tuple[sympy.Expr, ...]:
        """The shape of a tensor node in the symbols of the spaces."""
        return tuple(self.size(n) for n in node.meta["val"].shape)


@dataclasses.dataclass(frozen=True)
class Split(Normal):
    """A call in two programs: one of integers for the whole graph object, and one that ranks run on their rows."""

    index_program: fx.GraphModule = dataclasses.field(kw_only=True)
    """Runs once on the whole graph object: everything that only moves or computes integers. Its results are cut into
    rows for each rank."""
    inputs: tuple[Input, ...] = dataclasses.field(kw_only=True)
    """One for each placeholder of `graph`, found by its name."""
    outputs: tuple[Output, ...] = dataclasses.field(kw_only=True)
    conditions: tuple[tuple[sympy.Symbol, int], ...] = dataclasses.field(kw_only=True)
    """(symbol, index output): numbers that the model branched on, or took for sizes."""


@dataclasses.dataclass(frozen=True)
class Placed(Split):
    """A program whose index spaces are known; when its stage is over, every node carries its `Placement`, too."""

    spaces: tuple[Space, ...] = dataclasses.field(kw_only=True)
    """Atoms first."""
    pointers: tuple[Pointer, ...] = dataclasses.field(kw_only=True)
    ranges: tuple[Range, ...] = dataclasses.field(kw_only=True)
    may_be_less: frozenset[sympy.Symbol] = dataclasses.field(kw_only=True)
    """Merged symbols that may be less than the rows of their space: the largest row number in a pointer, plus one."""

    @property
    def row_spaces(self) -> tuple[Space, ...]:
        """All spaces whose rows values have on a rank."""
        return self.spaces

    def space_of(self, size: sympy.Expr) -> Space | None:
        """The space whose size `size` is, if any."""
        return next((s for s in self.row_spaces if s.symbol == size), None)

    def space(self, name: str) -> Space:
        """The space called `name`."""
        return next(s for s in self.spaces if s.name == name)


def owner_pointers(program: Placed) -> dict[str, Pointer]:
    """Per space whose rows each follow one row of another, the pointer that says which."""
    found = [p for p in program.pointers if p.owner and not (p.leaves_rank or p.identity or p.source.blocks)]
    return {p.source.name: p for p in found}


@dataclasses.dataclass(frozen=True)
class Distributed(Placed):
    """A program that is right on any number of ranks: messages are part of it."""

    halo_spaces: tuple[Space, ...] = ()
    """Spaces of halo rows, on which a rank computes what would cost more to send."""
    thinned_spaces: tuple[Space, ...] = ()
    """Spaces of some rows of another space: the only rows that cross of some value."""
    narrowest: tuple[tuple[str, int], ...] = ()
    """(space, bytes that would cross for each halo row if work were free): every value once, at its narrowest."""

    @property
    def row_spaces(self) -> tuple[Space, ...]:
        """All spaces whose rows values have on a rank, halo rows among them."""
        return (*self.spaces, *self.halo_spaces)


@dataclasses.dataclass(frozen=True)
class Tiled(Distributed):
    """A program in an order to run: regions, block by block, and messages between them."""

    tiled: fx.GraphModule = dataclasses.field(kw_only=True)
    """The graph as calls of regions."""
    differentiated: fx.GraphModule = dataclasses.field(kw_only=True)
    """The graph that ranks run to differentiate. It is not tiled, and has gradients where `graph` has none."""


@dataclasses.dataclass(frozen=True)
class Runnable(Tiled):
    """A program whose regions are ready to run: operator by operator, or as machine code."""


P = TypeVar("P", bound=Normal)
T = TypeVar("T", bound=Tiled)


def grown(program: Normal, record: type[P], **found: Any) -> P:
    """The next record of a program: its fields, and those found since. A new graph is checked."""
    if "graph" in found:
        found["graph"].graph.lint()
        found["graph"].recompile()
    held = {field.name: getattr(program, field.name) for field in dataclasses.fields(program)}
    return record(**{**held, **found})


def copy_tiled(program: Tiled) -> fx.GraphModule:
    """Return a copy of a program's tiled graph to rewrite. Regions are shared."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.tiled.graph, {}))
    return graph_module(program.tiled, graph)


def replace_tiled(program: T, module: fx.GraphModule) -> T:
    """Return `program` with a rewritten tiled graph, checked."""
    module.graph.lint()
    module.recompile()
    return dataclasses.replace(program, tiled=module)


def replace_graph(program: P, module: fx.GraphModule, **changes: Any) -> P:
    """Return `program` with a rewritten graph, checked."""
    return grown(program, type(program), graph=module, **changes)
