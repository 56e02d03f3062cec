"""Tensors of one row, and what is computed of them, in its simplest form.

x * 0 = 0        x * 1 = x        x + 0 = x        a sum leaves out terms that are zero
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .elements import Elements, Pointwise, Product, Rows, Sum, Table, Unsupported, Whole

LARGE = 2**20
"""Elements of a tensor of one row above which a body is left to other code generators."""
PRODUCTS = 2**22
"""The same for products of two values of a row, which may be no more than parts of a sum over rows (`outer`)."""
WHOLE = 2**24
"""The same for tensors that are the same for all rows."""
NARROW = (torch.int8, torch.int16, torch.uint8)
"""Integers that overflow soon. They are computed with as 64 bits, so only what is read has these dtypes."""
SMALL = 64
"""Entries of a matrix of weights up to which a product with it is written out."""


@dataclasses.dataclass(frozen=True)
class Given:
    """An input of a body."""

    rows: int | None
    """The dimension of rows, of which a block takes its own; None if it takes all of the input."""
    shape: tuple[int | None, ...]
    """The shape for one row; None for sizes that vary, as of a table of which rows are read by a pointer."""
    dtype: torch.dtype
    constant: Tensor | None = None
    """The values, if they never change."""
    is_number: bool = False
    """A Python number, not a tensor."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor for one row."""

    elements: Tensor
    """Names of elements, in the tensor's shape. dtype: int64."""
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True)
class Input:
    """An input as a body sees it, before it is used."""

    position: int
    given: Given


class Builder:
    """Makes definitions of elements."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.inputs: dict[int, Value] = {}
        self.tables: dict[int, int] = {}
        """The dimension along which each table is read by pointers."""
        self.zero = table.literal(0.0)

    # ---- Inputs.

    def value(self, x: Any) -> Value:
        """A tensor for one row; inputs get their elements when they are used."""
        if isinstance(x, Value):
            return x
        if isinstance(x, int | float):
            return Value(torch.tensor(self.literal(x)), torch.float64)
        if not isinstance(x, Input):
            raise Unsupported(f"an operand of type {type(x).__name__}")
        if x.position not in self.inputs:
            self.inputs[x.position] = self._entries(x)
        return self.inputs[x.position]

    def _entries(self, x: Input) -> Value:
        given = x.given
        if given.is_number:
            raise Unsupported("a number that varies")
        if any(n is None for n in given.shape) or self.tables.get(x.position, 0) != 0:
            raise Unsupported("all of a table")
        shape: Any = given.shape
        check_size(shape, WHOLE if given.rows is None else LARGE)
        if given.rows is None:
            elements = self.table.define(Whole(x.position), given.dtype, shape)
            if given.constant is not None:
                values = given.constant.detach().double().reshape(-1).numpy()
                if not np.isfinite(values).all():
                    raise Unsupported("a constant that is not finite")
                self.table.know(elements, values)
            return Value(torch.from_numpy(elements).reshape(shape), given.dtype)
        first = (shape[given.rows], *shape[: given.rows], *shape[given.rows + 1 :])
        elements = self.table.define(Rows(x.position), given.dtype, first)
        return Value(torch.from_numpy(elements).reshape(first).movedim(0, given.rows), given.dtype)

    def literal(self, value: Any) -> int:
        """The element that is a number."""
        if not math.isfinite(value):
            raise Unsupported("a number that is not finite")
        return self.table.literal(value)

    # ---- Elements that are computed.

    def cast(self, x: Value, dtype: torch.dtype) -> Elements:
        """The elements of a value in another dtype."""
        found = x.elements.numpy()
        if x.dtype == dtype or not found.size:
            return found
        known = ~np.isnan(self.table.value(found))
        if known.all() and dtype.is_floating_point:
            return found
        if known.all():
            values = self.table.value(found)
            if dtype == torch.bool:
                values = values != 0
            names = [self.literal(v) for v in np.trunc(values).reshape(-1).tolist()]
            return np.array(names).reshape(found.shape)
        if dtype in NARROW and x.dtype != torch.bool:
            raise Unsupported("integers of few bits")
        if kind_of(x.dtype) == kind_of(dtype):
            return found
        return self.new("as", (found,), dtype, x.dtype)

    def pointwise(self, function: str, operands: Sequence[Any], dtype: torch.dtype, within: Any = None) -> Value:
        """A function of operands that are broadcast, in the simplest form.

        Args:
            function: its name in the table of functions.
            operands: values, inputs or numbers.
            dtype: of the result.
            within: the dtype in which it is computed, if that is another one.
        """
        if (within or dtype) == torch.bool:
            function = LOGICAL.get(function, function)
        if dtype in NARROW:
            raise Unsupported("integers of few bits")
        values = [self.value(x) for x in operands]
        given = np.broadcast_arrays(*(self.cast(v, within or dtype) for v in values))
        return Value(torch.from_numpy(self._simplest(function, given, dtype, within or dtype)), dtype)

    def _simplest(self, function: str, given: Sequence[Elements], dtype: torch.dtype, within: torch.dtype) -> Elements:
        numbers = [self.table.value(g) for g in given]
        result = np.full(given[0].shape, -1)
        if function in ("add", "sub", "mul") and dtype != torch.bool:
            a, b = numbers
            if function == "mul":
                result[(a == 0) | (b == 0)] = self.zero
                result = np.where((result < 0) & (b == 1), given[0], result)
                result = np.where((result < 0) & (a == 1), given[1], result)
            else:
                result = np.where(b == 0, given[0], result)
                if function == "add":
                    result = np.where((result < 0) & (a == 0), given[1], result)
        known = (result < 0) & ~np.any(np.isnan(numbers), axis=0)
        if known.any() and function in FOLDED and dtype.is_floating_point:
            with np.errstate(all="ignore"):
                values = FOLDED[function](*(n[known] for n in numbers))
            different, inverse = np.unique(values, return_inverse=True)
            result[known] = np.array([self.literal(v) for v in different.tolist()])[inverse]
        missing = result < 0
        if missing.any():
            operands = tuple(g[missing] for g in given)
            places = np.flatnonzero(missing)
            result[missing] = self.table.define(Pointwise(function, operands, within), dtype, result.shape, places)
        return result

    def new(self, function: str, given: Sequence[Elements], dtype: torch.dtype, within: torch.dtype) -> Elements:
        what = Pointwise(function, tuple(g.reshape(-1) for g in given), within)
        return self.table.define(what, dtype, given[0].shape).reshape(given[0].shape)

    def sums(self, factors: Sequence[Elements], dtype: torch.dtype) -> Value:
        """Sums of products over the last dimension; terms that are zero, and factors that are one, are left out."""
        *shape, terms = factors[0].shape
        arrays = [f.reshape(math.prod(shape), terms) for f in factors]
        numbers = [self.table.value(a) for a in arrays]
        keep = ~np.any([n == 0 for n in numbers], axis=0)
        counts = keep.sum(1)
        most = int(counts.max(initial=0))
        if most < terms:  # terms that are kept move to the front
            front = np.argsort(~keep, axis=1, kind="stable")[:, :most]
            kept = np.take_along_axis(keep, front, 1)
            arrays = [np.where(kept, np.take_along_axis(a, front, 1), self.zero) for a in arrays]
        if most == 0:
            return Value(torch.full(shape, self.zero), dtype)
        if most == 1 and len(arrays) == 1:
            return Value(torch.from_numpy(arrays[0].reshape(shape)), dtype)
        if most == 1:
            return Value(
                torch.from_numpy(self._simplest("mul", [a[:, 0] for a in arrays], dtype, dtype).reshape(shape)), dtype
            )
        result = np.full(len(counts), self.zero)
        some = np.flatnonzero(counts)
        what = Sum(tuple(a[some] for a in arrays))
        result[some] = self.table.define(what, dtype, tuple(shape), some)
        return Value(torch.from_numpy(result.reshape(shape)), dtype)

    def product(self, left: Value, right: Value, dtype: torch.dtype) -> Value:
        """A matrix product. Shapes: [m, k], [k, n]."""
        a, b = self.cast(left, dtype), self.cast(right, dtype)
        swapped = not self.is_whole(b) and self.is_whole(a)
        if swapped:
            a, b = b.T, a.T
        known = not np.isnan(self.table.value(b)).any()
        if not self.is_whole(b) or b.size <= SMALL or (known and self._is_sparse(b)):
            result = self.written_out(a, b, dtype)
        else:
            what = Product(np.ascontiguousarray(a), b)
            shape = (a.shape[0], b.shape[1])
            result = self.table.define(what, dtype, shape).reshape(shape)
        return Value(torch.from_numpy(result.T if swapped else result), dtype)

    def is_whole(self, x: Elements) -> bool:
        owners = self.table.owners(x)
        return all(o >= 0 and isinstance(self.table.definitions[o].what, Whole) for o in owners)

    def _is_sparse(self, x: Elements) -> bool:
        return bool(np.count_nonzero(self.table.value(x)) <= max(0.1 * x.size, 4 * sum(x.shape)))

    def written_out(self, a: Elements, b: Elements, dtype: torch.dtype) -> Elements:
        (m, k), n = a.shape, b.shape[1]
        zero = self.table.value(b) == 0
        counts = k - zero.sum(0)
        check_size((m, int(counts.sum())), LARGE if self.is_whole(b) else PRODUCTS)
        front = np.argsort(zero, axis=0, kind="stable")  # terms that are not zero come first
        result = np.full((m, n), self.zero)
        for count in np.unique(counts[counts > 0]).tolist():
            columns = np.flatnonzero(counts == count)
            terms = front[:count, columns].T  # [columns, count]
            right = np.broadcast_to(b[terms, columns[:, None]], (m, *terms.shape))
            result[:, columns] = self.sums((a[:, terms], right), dtype).elements.numpy()
        return result


def check_size(shape: Sequence[int], most: int = LARGE) -> None:
    if math.prod(shape) > most:
        raise Unsupported(f"a value of {list(shape)} numbers a row")


def known(f: Builder, x: Any) -> np.ndarray:
    """Integers, or truth values, that are known."""
    value = f.value(x)
    values = f.table.value(value.elements.numpy())
    if np.isnan(values).any():
        raise Unsupported("numbers of places that vary")
    return values.astype(bool if value.dtype == torch.bool else np.int64)  # type: ignore[no-any-return]


def kind_of(dtype: torch.dtype) -> str:
    """The kind of vector that holds numbers of a dtype: F, D, I or B, as in ``prelude.h``."""
    if dtype == torch.bool:
        return "B"
    if not dtype.is_floating_point:
        return "I"
    if dtype not in (torch.float32, torch.float64):
        raise Unsupported(f"{dtype}")
    return "F" if dtype == torch.float32 else "D"


LOGICAL = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}
"""Functions of numbers, as they are of truth values."""
FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
}
"""Functions of numbers that are known."""
