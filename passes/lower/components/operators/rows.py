"""Rows of tables, read where a pointer says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..elements import Gather, Unsupported
from ..values import Builder, Input, Value, known
from .registry import handles

aten = torch.ops.aten


@handles(aten.index_select.default)
def _index_select(f: Builder, dtype: torch.dtype, table: Any, dim: int, index: Any) -> Value:
    return _gathered(f, dtype, table, dim, index)


@handles(aten.embedding.default)
def _embedding(f: Builder, dtype: torch.dtype, table: Any, index: Any, *_: Any) -> Value:
    return _gathered(f, dtype, table, 0, index)


@handles(aten.index.Tensor)
def _index(f: Builder, dtype: torch.dtype, table: Any, indices: Any) -> Value:
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if all(not np.isnan(f.table.value(f.value(i).elements.numpy())).any() for _, i in given):
        at = [None if i is None else torch.from_numpy(known(f, i)) for i in indices]
        return Value(aten.index.Tensor(f.value(table).elements, at), dtype)
    dims = [d for d, _ in given]
    if dims != list(range(dims[0], dims[0] + len(dims))) or (len(dims) > 1 and dims[0] != 0):
        raise Unsupported("several pointers into one table")
    if len(dims) == 1:
        return _gathered(f, dtype, table, dims[0], given[0][1])
    if not isinstance(table, Input) or any(n is None for n in table.given.shape[1:]):
        raise Unsupported("several pointers into values of a row")
    index = f.value(given[0][1])
    for (_, more), size in zip(given[1:], table.given.shape[1:], strict=False):
        number = f.value(more)
        counted = f.pointwise("add", (number, _from_the_end(f, number, size)), torch.int64)
        index = f.pointwise("add", (f.pointwise("mul", (index, size), torch.int64), counted), torch.int64)
    return _gathered(f, dtype, table, 0, index, len(dims))


def _from_the_end(f: Builder, number: Value, size: Any) -> Value:
    """The length of a dimension for numbers that count from its end, zero for others."""
    return f.pointwise("mul", (f.pointwise("lt", (number, 0), torch.bool, torch.int64), size), torch.int64)


def _gathered(f: Builder, dtype: torch.dtype, table: Any, dim: int, index: Any, joined: int = 1) -> Value:
    """Rows of a table along a dimension, or along so many first dimensions that are taken as one."""
    at = f.value(index)
    names = at.elements.numpy()
    if not np.isnan(f.table.value(names)).any():
        source = f.value(table).elements
        chosen = source.flatten(0, joined - 1).index_select(dim, torch.from_numpy(known(f, index)).reshape(-1))
        return Value(chosen.unflatten(dim, names.shape), dtype)
    if not isinstance(table, Input) or table.given.rows is not None:
        raise Unsupported("a pointer into values of a row")
    dim %= max(len(table.given.shape), 1)
    if f.tables.setdefault(table.position, dim) != dim or (dim != 0 and table.position in f.inputs):
        raise Unsupported("pointers along several dimensions of a table")
    rest: Any = table.given.shape[:dim] + table.given.shape[dim + joined :]
    inner: Any = table.given.shape[dim + 1 : dim + joined]
    if None in (*rest, *inner):
        raise Unsupported("a table of two sizes that vary")
    what = [Gather(table.position, np.array([i]), math.prod(inner)) for i in names.reshape(-1).tolist()]
    each = np.stack([f.table.define(w, dtype, rest) for w in what])
    found = torch.from_numpy(each).reshape(*names.shape, *rest)
    return Value(found.movedim(tuple(range(names.ndim)), tuple(range(dim, dim + names.ndim))), dtype)
