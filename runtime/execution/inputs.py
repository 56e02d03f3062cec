"""The check that a graph object fits the program: structure, dtypes, sizes, and the branches that the model took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ...errors import GuardError, InputError
from ...ir import Placed
from ...ir.tree import Leaf


def check_leaves(program: Placed, leaves: Sequence[Leaf]) -> None:
    """Check that a graph has the same tensors, dtypes and feature widths as the example."""
    expected = program.captured.leaves
    paths, known = [leaf.path for leaf in leaves], [leaf.path for leaf in expected]
    if paths != known:
        missing, extra = sorted(set(known) - set(paths)), sorted(set(paths) - set(known))
        raise InputError(
            "The graph does not have the structure of the example it was compiled for: "
            + "; ".join(
                f"{word} {', '.join(names)}" for word, names in (("missing", missing), ("unexpected", extra)) if names
            )
            + ". Build it as the example was built, or compile again."
        )
    for leaf, example, sizes in zip(leaves, expected, program.captured.sizes, strict=True):
        tensor, model = leaf.tensor, example.tensor
        if tensor.dtype != model.dtype:
            raise InputError(
                f"{leaf.path} is {tensor.dtype}, the model was compiled for {model.dtype}: "
                f"convert it with .to({model.dtype}), or compile again."
            )
        if tensor.device.type != model.device.type:
            raise InputError(
                f"{leaf.path} is on {tensor.device}, the model was compiled on {model.device}: "
                f"move it with .to({str(model.device)!r}), or compile again."
            )
        if tensor.dim() != model.dim() or any(
            size.is_Integer and n != int(size) for size, n in zip(sizes, tensor.shape, strict=False)
        ):
            shape = ", ".join(str(size) if size.is_Integer else "*" for size in sizes)
            raise InputError(
                f"{leaf.path} has shape {tuple(tensor.shape)}, the model was compiled for ({shape}): "
                "build the graph as the example was built, or compile again."
            )


def finite(leaves: Sequence[Leaf]) -> list[torch.Tensor]:
    """For each tensor of real numbers, if all of them are finite."""
    return [torch.isfinite(leaf.tensor).all() for leaf in leaves if leaf.tensor.is_floating_point()]


def refuse_infinite(program: Placed, leaves: Sequence[Leaf]) -> None:
    """Raise `InputError` if a number is NaN or infinite, unless some of the example's are."""
    for leaf, example in zip(leaves, program.captured.leaves, strict=True):
        if not leaf.tensor.is_floating_point():
            continue
        bad = ~torch.isfinite(leaf.tensor)
        if bool(bad.any()) and bool(torch.isfinite(example.tensor).all()):
            where = tuple(bad.nonzero()[0].tolist())
            raise InputError(
                f"{leaf.path} is NaN or infinite at {where}. Check the structure; atoms may have flown apart."
            )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers of rows, and what they are numbers of."""

    value: torch.Tensor
    rows: int
    label: str
    what: str
    negative: bool
    """True if numbers may count from the end."""

    def check(self, low: int, high: int) -> None:
        """Raise `InputError` if the lowest or the highest is none."""
        if low < (-self.rows if self.negative else 0) or high >= self.rows:
            bad = high if high >= self.rows else low
            at = int((self.value == bad).flatten().nonzero()[0])
            raise InputError(
                f"{self.label} refers to number {bad} (at position {at}), but there are {self.rows} {self.what}, "
                "numbered from 0. Check the graph, and that the model knows every species in it."
            )


def ends(value: torch.Tensor) -> list[torch.Tensor]:
    """The lowest and the highest of some numbers of rows; nothing of no numbers, or of truths."""
    return [end.long() for end in value.aminmax()] if _has_ends(value) else []


def _has_ends(value: torch.Tensor) -> bool:
    return value.numel() > 0 and value.dtype != torch.bool


def check_numbers(spans: Sequence[Numbers], found: Sequence[int]) -> None:
    """Raise `InputError` if some are no numbers of rows that exist; `found` are the `ends` of all, in this order."""
    spans = [s for s in spans if _has_ends(s.value)]
    for numbers, low, high in zip(spans, found[::2], found[1::2], strict=True):
        numbers.check(low, high)


def together(numbers: Sequence[torch.Tensor]) -> list[Any]:
    """The numbers that tensors hold, with one question to each device: an answer waits for all that it is to do.

    Truth is 1.
    """
    found: list[Any] = [None] * len(numbers)
    kinds = [(n.device, n.is_floating_point()) for n in numbers]
    for kind in dict.fromkeys(kinds):
        at = [i for i, k in enumerate(kinds) if k == kind]
        alike = [numbers[i].double() if kind[1] else numbers[i].long() for i in at]
        for i, value in zip(at, torch.stack(alike).tolist(), strict=True):
            found[i] = value
    return found


class Questions:
    """Numbers that tensors hold, which are asked for one after the other and read together."""

    def __init__(self) -> None:
        self._numbers: list[torch.Tensor] = []
        self._answers: list[Any] = []

    def ask(self, numbers: Sequence[torch.Tensor]) -> Callable[[], list[Any]]:
        """A function that gives the numbers; the first such call reads all that was asked by then."""
        start, end = len(self._numbers), len(self._numbers) + len(numbers)
        self._numbers += numbers

        def answers() -> list[Any]:
            if len(self._answers) < end:
                self._answers += together(self._numbers[len(self._answers) :])
            return self._answers[start:end]

        return answers


def bind_sizes(program: Placed, leaves: Sequence[Leaf]) -> dict[sympy.Symbol, int]:
    """The value of every size symbol, from the shapes of the leaves. Sizes made of other sizes must agree with them."""
    known: dict[sympy.Symbol, int] = {}
    first: dict[sympy.Symbol, str] = {}
    for leaf, sizes in zip(leaves, program.captured.sizes, strict=True):
        for size, n in zip(sizes, leaf.tensor.shape, strict=True):
            symbol = program.size(size)
            if not symbol.is_Symbol:
                continue
            if known.setdefault(symbol, n) != n:
                raise InputError(
                    f"{leaf.path} has {n} rows where {first[symbol]} has {known[symbol]}: both must have one row for "
                    "each of the same things (atoms, edges)."
                )
            first.setdefault(symbol, leaf.path)
    for leaf, sizes in zip(leaves, program.captured.sizes, strict=True):
        for size, n in zip(sizes, leaf.tensor.shape, strict=True):
            expected = program.size(program.captured.size(size))  # includes sizes that only the example took for equal
            if expected.free_symbols <= known.keys() and int(expected.xreplace(known)) != n:
                raise InputError(
                    f"{leaf.path} has {n} rows, not the {expected.xreplace(known)} that "
                    f"{first[min(expected.free_symbols, key=str)]} makes necessary."
                )
    return known


def number_in(value: torch.Tensor) -> Any:
    """The number that a tensor holds; true is 1."""
    number = value.item()
    return int(number) if isinstance(number, bool) else number


def bind_number(program: Placed, known: dict[sympy.Symbol, int], symbol: sympy.Symbol, value: Any) -> None:
    """Note a number that the graph holds. If the model takes it for a number of rows, it must be that number."""
    size = program.size(symbol) if symbol in dict(program.merged) else symbol
    fits = not size.free_symbols <= known.keys() or (rows := int(size.xreplace(known))) == value
    if not fits and not (symbol in program.may_be_less and value < rows):
        space = program.space_of(size)
        if space is None:
            raise InputError(
                f"The model makes a table of as many rows as the largest row number of a list says, which is {value}, "
                f"and uses it whole where {rows} would be the last row: nothing points at that here. Leave out what "
                "nothing points at (atoms without neighbours), or take the number of rows from tensor.shape."
            )
        raise InputError(
            f"The graph says that there are {value} where it has {rows} {space.name}. "
            "Give it the number that it has, or edges and other lists that fit the number."
        )
    known[symbol] = value


def check_branches(
    program: Placed, known: Mapping[sympy.Symbol, int], tensors: Sequence[torch.Tensor], shapes: Shapes
) -> None:
    """Find out if the index program failed because this graph takes another branch of the model.

    Sizes that depend on a branch are the example's. They do not fit together in a graph that takes another branch.

    Raises:
        GuardError: this graph takes another branch.
    """
    values = _AsFarAsItGoes(program.index_program).run(*tensors)
    found = {symbol: values[position] for symbol, position in program.conditions if values[position] is not None}
    numbers = {symbol: number_in(value) for symbol, value in found.items()}
    check_guards(program, {**known, **numbers}, counted(values, shapes))


class _AsFarAsItGoes(fx.Interpreter):
    """Runs the operators that do not depend on one that fails. Results of the others are None."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return super().run_node(n)
        if any(self.env[given] is None for given in n.all_input_nodes):
            return None
        try:
            return super().run_node(n)
        except (IndexError, RuntimeError):
            return None


Shapes = Sequence[tuple[int, tuple[sympy.Expr, ...]]]
"""The shapes of outputs of the index program, by position, in the symbols in which the model asked about sizes."""


def counted(values: Sequence[Any], shapes: Shapes) -> dict[sympy.Symbol, int]:
    """Sizes that depend on values (how many species there are), of this graph.

    Args:
        values: outputs of the index program; None for those that could not be computed.
        shapes: see `Shapes`.
    """
    pairs = (
        (size, n)
        for position, shape in shapes
        for size, n in zip(shape, getattr(values[position], "shape", ()), strict=False)
    )
    return {size: n for size, n in pairs if size.is_Symbol and symbol_is_type(size, SymT.UNBACKED_INT)}


def check_guards(
    program: Placed, known: Mapping[sympy.Symbol, int | float], sizes: Mapping[sympy.Symbol, int] | None = None
) -> None:
    """Check that the branches that the model took on the example's sizes are the branches for these sizes.

    Args:
        program: the program.
        known: sizes and numbers of this graph, in the symbols that the program knows them by.
        sizes: see `counted`; a size that a branch of the example fixed is a number there.
    """
    shape_env = program.captured.shape_env
    values = {symbol: sympy.sympify(value) for symbol, value in known.items()}
    decided = {symbol: sympy.Integer(n) for symbol, n in (sizes or {}).items()}
    decided |= {symbol: values[symbol] for symbol, _ in program.conditions if symbol in values}
    for check in program.captured.checks:
        # Values that decided about a branch go in first: the example's took their place when they did.
        expr = program.size(shape_env.replace(check.xreplace(decided)))
        if expr.free_symbols <= set(known) and expr.xreplace(values) == sympy.false:
            raise GuardError(
                f"This graph takes another branch of the model than the example did: {check} does not hold."
            )
    for comparison in program.captured.comparisons:
        size = program.size(comparison.size)
        if size.free_symbols <= set(known) and not comparison.holds(int(size.xreplace(values))):
            raise GuardError(
                "This graph takes another branch of the model than the example did, where it asks whether "
                f"{comparison.size} is {comparison.number}."
            )
