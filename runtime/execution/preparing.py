"""Check a graph object and run the index program on it: what comes before its rows are divided.

    leaves -> structure, dtypes, sizes -> index program -> sizes, branches, row numbers -> prepared graph object

Questions about numbers that an accelerator holds are asked first and answered together: an answer waits for all that
the device is to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...errors import InputError
from ...ir import Input, Tiled
from ...ir.graphs import runnable
from ...ir.sizes import as_traced
from ...ir.tree import Leaf
from ..division.plan import Division
from ..division.shard import Order
from .agreement import checksums, fingerprint
from .budget import Careful, compares_all_with_all
from .inputs import (
    Numbers,
    Questions,
    Shapes,
    bind_number,
    bind_sizes,
    check_branches,
    check_guards,
    check_leaves,
    check_numbers,
    counted,
    ends,
    finite,
    refuse_infinite,
)
from .precision import as_written


@dataclasses.dataclass(frozen=True)
class Layout:
    """The division of one graph object. It is valid for every graph object with the same pointers."""

    pointers: dict[str, Tensor]
    sizes: dict[str, int]
    division: Division
    orders: dict[str, Order]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A graph object after checks and the index program."""

    values: tuple[Any, ...]
    sizes: dict[str, int]
    pointers: dict[str, Tensor]
    coordinates: tuple[Tensor, ...]
    held: Layout | None = None
    """The last layout, if it holds for this graph object."""
    digest: str = ""
    """A digest of the graph object, if ranks compare it."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The checks of graph objects for one program, and the run of its index program."""

    program: Tiled
    inputs: tuple[Input, ...]
    """The inputs of the graph that ranks run, in its order."""
    shapes: tuple[tuple[sympy.Expr, ...], ...]
    """Their shapes in the symbols of the spaces; empty for those that are neither rows nor pointers."""
    sized: Shapes
    """Shapes of outputs of the index program, which tell the sizes that were not known before it ran."""
    traced: Shapes
    """The same shapes as the model saw them: sizes that depend on values keep their own names."""
    is_quadratic: bool
    """True if the index program compares all rows with all."""

    @classmethod
    def of(cls, program: Tiled) -> Preparation:
        """The preparation for a program that went through all passes."""
        placeholders = [n for n in program.graph.graph.nodes if n.op == "placeholder"]
        inputs = [next(i for i in program.inputs if i.name == n.name) for n in placeholders]
        given = zip(inputs, placeholders, strict=True)
        shapes = [program.shape(n) if i.kind in ("rows", "pointer") else () for i, n in given]
        (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
        # First the sizes as they are, then the sizes that they equal in the example: a guard compares the two.
        raw = [_raw_shape(program, n) for n in output.args[0]]
        taken = [program.shape(n) if isinstance(n.meta["val"], Tensor) else () for n in output.args[0]]
        traced = enumerate(_traced_shape(n) for n in output.args[0])
        sized = (*enumerate(raw), *enumerate(taken))
        return cls(program, tuple(inputs), tuple(shapes), sized, tuple(traced), compares_all_with_all(program))

    def __call__(
        self, leaves: Sequence[Leaf], last: Layout | None = None, whole: bool = True, digested: bool = False
    ) -> Prepared:
        """The graph object with these leaves, prepared.

        Args:
            leaves: all tensors of the graph object.
            last: a layout that may hold for it.
            whole: false for one rank's rows of a graph object: how many there are altogether is checked elsewhere.
            digested: true if ranks compare it by its digest.

        Raises:
            InputError: it does not fit the program.
            GuardError: it takes another branch of the model than the example did.
        """
        program = self.program
        check_leaves(program, leaves)
        known = bind_sizes(program, leaves)
        questions = Questions()
        is_finite = questions.ask(finite(leaves))
        sums = questions.ask(checksums(leaves) if digested else [])
        values = self._values(leaves, known)
        self._bind_shapes(values, known)
        pointers = {i.name: values[i.source] for i in self.inputs if i.kind == "pointer"}
        same = _compared(last, pointers)
        is_same = questions.ask(same or [])
        found = questions.ask([end for value in self._row_numbers(values) for end in ends(value)])
        conditions = questions.ask([values[position].reshape(()) for _, position in program.conditions])
        if not all(is_finite()):
            refuse_infinite(program, leaves)
        for (symbol, _), number in zip(program.conditions, conditions(), strict=True):
            bind_number(program, known, symbol, number)
        if whole:
            check_guards(program, known, counted(values, self.traced))
        sizes = {s.name: int((s.all_of or s).symbol.xreplace(known)) for s in program.spaces}
        check_numbers(list(self._spans(values, sizes, known)), found())
        held = last if same is not None and all(is_same()) and last is not None and last.sizes == sizes else None
        digest = fingerprint(leaves, sums()) if digested else ""
        return Prepared(values, sizes, pointers, self._coordinates(values), held, digest)

    def _values(self, leaves: Sequence[Leaf], known: Mapping[sympy.Symbol, int]) -> tuple[Any, ...]:
        """The outputs of the index program."""
        program, tensors = self.program, [leaf.tensor.detach() for leaf in leaves]
        run = Careful(program, known).run if self.is_quadratic else runnable(program.index_program).forward
        with torch.no_grad(), as_written():
            try:
                return tuple(run(*tensors))
            except InputError:
                refuse_infinite(program, leaves)
                raise
            except (IndexError, RuntimeError) as error:
                refuse_infinite(program, leaves)
                check_branches(program, known, tensors, self.traced)
                raise InputError(
                    f"The graph's integers are inconsistent: {str(error).splitlines()[0]}. "
                    "Check that edges, batch and offsets refer to rows that exist."
                ) from error

    def _bind_shapes(self, values: Sequence[Any], known: dict[sympy.Symbol, int]) -> None:
        """Note the sizes that outputs of the index program have."""
        for position, shape in self.sized:
            rows = getattr(values[position], "shape", ())
            for size, n in zip(shape, rows, strict=False):  # values of conditions have no rows
                if size.is_Symbol:
                    known.setdefault(size, n)

    def _coordinates(self, values: Sequence[Any]) -> tuple[Tensor, ...]:
        """Positions of the atoms, and what else has three numbers for each."""
        atoms = self.program.spaces[0]
        return tuple(
            values[i.source]
            for i, shape in zip(self.inputs, self.shapes, strict=True)
            if i.kind == "rows" and shape == (atoms.symbol, 3) and values[i.source].is_floating_point()
        )

    def _row_numbers(self, values: Sequence[Any]) -> list[Tensor]:
        """The values of `_spans`."""
        pointers = [values[i.source] for i in self.inputs if i.kind == "pointer"]
        return pointers + [values[span.source] for span in self.program.ranges]

    def _spans(
        self, values: Sequence[Any], sizes: Mapping[str, int], known: Mapping[sympy.Symbol, Any]
    ) -> Iterator[Numbers]:
        """Every pointer, with the rows that exist, and every lookup in a whole table, with the table's rows."""
        for given in self.inputs:
            if given.kind == "pointer":
                assert given.space is not None
                rows = sizes[given.space.name]
                yield Numbers(values[given.source], rows, given.label, f"rows of {given.space}", False)
        for span in self.program.ranges:
            of = "a table of the model (species?)" if span.rows.is_Integer else "the table that it is an index of"
            rows = int(span.rows.xreplace(known))
            yield Numbers(values[span.source], rows, span.label, f"entries of {of}", span.negative)


def _compared(last: Layout | None, pointers: Mapping[str, Tensor]) -> list[Tensor] | None:
    """For each pointer, if it is that of a layout; None if they cannot be."""
    if last is None:
        return None
    pairs = [(last.pointers[name], value) for name, value in pointers.items()]
    if any(then.shape != now.shape for then, now in pairs):
        return None
    return [(then == now).all() for then, now in pairs]


def _raw_shape(program: Tiled, node: fx.Node) -> tuple[sympy.Expr, ...]:
    value = node.meta["val"]
    shape = value.shape if isinstance(value, Tensor) else ()
    return tuple(program.size(program.captured.raw_size(n)) for n in shape)


def _traced_shape(node: fx.Node) -> tuple[sympy.Expr, ...]:
    """The shape of a tensor as the model saw it: sizes that depend on values keep their own names."""
    value = node.meta["val"]
    return tuple(map(as_traced, value.shape)) if isinstance(value, Tensor) else ()
