"""Functions of one number a row, looked up in a table."""

from __future__ import annotations

from typing import Any

import torch

from .....runtime.operators.radial import COEFFICIENTS, radial_lookup
from ..elements import Lookup, Unsupported
from ..values import LARGE, Builder, Input, Value, kind_of
from .registry import handles


@handles(radial_lookup)
def _radial_lookup(f: Builder, dtype: torch.dtype, x: Any, table: Any, low: float, high: float, order: int) -> Value:
    value = f.value(x)
    if not isinstance(table, Input) or table.given.rows is not None or None in table.given.shape:
        raise Unsupported("a table of a row")
    if value.elements.shape != (1,) or {value.dtype, table.given.dtype} != {dtype} or kind_of(dtype) not in "FD":
        raise Unsupported("a table of other numbers than those that are looked up")
    shape: Any = table.given.shape
    intervals, coefficients, functions = shape
    if coefficients != COEFFICIENTS or order >= COEFFICIENTS or functions > LARGE:
        raise Unsupported("a derivative that is zero")
    what = Lookup(table.position, value.elements.numpy(), intervals, low, high, order)
    found = f.table.define(what, dtype, (functions,))
    return Value(torch.from_numpy(found).reshape(1, functions), dtype)
