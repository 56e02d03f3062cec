"""Operators that run over all rows, said by sums and largest values.

    mean(x, 0)                   =>  sum(x, 0) / n                                n rows of all ranks
    linalg_vector_norm(x, 2, 0)  =>  sqrt(sum(x * x, 0))
    var(x, [0])                  =>  sum((x - mean(x, 0)) ** 2, 0) / (n - 1)
    logsumexp(x, 0)              =>  log(sum(exp(x - m), 0)) + m                  m = amax(x, 0), held fixed
    softmax(x, 0)                =>  exp(x - m) / sum(exp(x - m), 0)
    amax(x, 0)                   =>  m + sum(where(x == m, x - m, 0), 0) / sum(x == m, 0)
    any(mask)                    =>  sum((mask != 0).to(int), 0) > 0

The largest value is one number of all ranks, through which no gradient goes; that of the rows which have it does.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ...ir.operators import operators
from ...ir.writer import Writer, ndim
from ...runtime.operators.halo import stop_gradient

aten = torch.ops.aten


def _summed_rows(node: fx.Node, position: int = 1) -> list[int]:
    """The dimensions that a reduction runs over, if rows may be among them; empty if it is within each row."""
    source: Any = node.args[0]
    given: Any = node.args[position] if len(node.args) > position else None
    chosen = range(ndim(source)) if given is None or given == [] else [given] if isinstance(given, int) else given
    dims = [d % ndim(source) for d in chosen]
    return dims if any(isinstance(source.meta["val"].shape[d], torch.SymInt) for d in dims) else []


def _flag(node: fx.Node, position: int) -> bool:
    return bool(node.args[position]) if len(node.args) > position else False


def _mean(write: Writer, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims:
        return None
    if node.kwargs.get("dtype") is not None:
        source = write(aten._to_copy.default, source, dtype=node.kwargs["dtype"])
    total = write(aten.sum.dim_IntList, source, dims, _flag(node, 2))
    for dim in dims:
        total = write(aten.div.Tensor, total, write.size(source, dim))
    return total


def _norm(write: Writer, node: fx.Node) -> fx.Node | None:
    """The 2-norm over rows."""
    source: Any = node.args[0]
    dims = _summed_rows(node, 2)
    if not dims or (len(node.args) > 1 and node.args[1] != 2):
        return None
    square = write(aten.mul.Tensor, source, source)
    return write(aten.sqrt.default, write(aten.sum.dim_IntList, square, dims, _flag(node, 3)))


def _var(write: Writer, node: fx.Node) -> fx.Node | None:
    """The variance over rows, by its definition."""
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims:
        return None
    correction: Any = node.kwargs.get("correction", 1)
    count: Any = 1
    for dim in dims:
        n = write.size(source, dim)
        count = write(operator.mul, count, n) if isinstance(n, fx.Node) or isinstance(count, fx.Node) else count * n
    average = write(aten.div.Tensor, write(aten.sum.dim_IntList, source, dims, True), count)
    off = write(aten.sub.Tensor, source, average)
    keep = bool(node.kwargs.get("keepdim", False))
    square = write(aten.sum.dim_IntList, write(aten.mul.Tensor, off, off), dims, keep)
    return write(aten.div.Tensor, square, write(operator.sub, count, 1 if correction is None else correction))


def _std(write: Writer, node: fx.Node) -> fx.Node | None:
    """The standard deviation over rows: the root of the variance."""
    variance = _var(write, node)
    return None if variance is None else write(aten.sqrt.default, variance)


def _extreme(write: Writer, node: fx.Node) -> fx.Node | None:
    """A largest value with the gradient that torch gives it: shared by all rows that have it, on whatever rank."""
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims or not source.meta["val"].is_floating_point() or is_held(source):
        return None
    if all(user.target is stop_gradient for user in node.users):
        return None
    largest = write(stop_gradient, write(node.target, *node.args))
    wide = largest
    if not _flag(node, 2):
        for dim in sorted(dims):
            wide = write(aten.unsqueeze.default, wide, dim)
    off = write(aten.nan_to_num.default, write(aten.sub.Tensor, source, wide), 0.0)  # infinite values, too
    equal = write(aten.eq.Tensor, source, wide)
    zero = write(aten.full.default, [], 0.0, dtype=source.meta["val"].dtype, device=source.meta["val"].device)
    total = write(aten.sum.dim_IntList, write(aten.where.self, equal, off, zero), dims, _flag(node, 2))
    equal = write(aten._to_copy.default, equal, dtype=source.meta["val"].dtype)
    count = write(aten.sum.dim_IntList, equal, dims, _flag(node, 2))
    return write(aten.add.Tensor, largest, write(aten.div.Tensor, total, count))


def is_held(node: fx.Node) -> bool:
    """True if no gradient goes to a value: it was detached, or is made of a detached one alone."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1 and node.target is not stop_gradient:
        node = node.all_input_nodes[0]
    return node.target is stop_gradient


def _largest(write: Writer, source: fx.Node, dims: list[int]) -> fx.Node:
    """The numbers to subtract so that no exponential overflows."""
    largest = write(stop_gradient, write(aten.amax.default, source, dims, True))
    return write(aten.nan_to_num.default, largest, None, 0.0, 0.0)  # 0 for rows that are all -inf


def _logsumexp(write: Writer, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims:
        return None
    largest = _largest(write, source, dims)
    total = write(aten.exp.default, write(aten.sub.Tensor, source, largest))
    found = write(aten.log.default, write(aten.sum.dim_IntList, total, dims, True))
    found = write(aten.add.Tensor, found, largest)
    return found if _flag(node, 2) else write(aten.squeeze.dims, found, dims)


def _softmax(write: Writer, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims or (len(node.args) > 2 and node.args[2]):
        return None
    off = write(aten.sub.Tensor, source, _largest(write, source, dims))
    every = write(aten.exp.default, off)
    total = write(aten.sum.dim_IntList, every, dims, True)
    if node.target is aten._softmax.default:
        return write(aten.div.Tensor, every, total)
    return write(aten.sub.Tensor, off, write(aten.log.default, total))


def _softmax_backward(write: Writer, node: fx.Node) -> fx.Node | None:
    gradient, result, dim = node.args[:3]
    if not isinstance(result, fx.Node) or not isinstance(result.meta["val"].shape[dim], torch.SymInt):
        return None
    if node.target is aten._log_softmax_backward_data.default:
        total = write(aten.sum.dim_IntList, gradient, [dim], True)
        return write(aten.sub.Tensor, gradient, write(aten.mul.Tensor, write(aten.exp.default, result), total))
    total = write(aten.sum.dim_IntList, write(aten.mul.Tensor, gradient, result), [dim], True)
    return write(aten.mul.Tensor, result, write(aten.sub.Tensor, gradient, total))


def _any_or_all(write: Writer, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0]
    dims = _summed_rows(node)
    if not dims:
        return None
    is_any = node.target in (aten.any.default, aten.any.dim)
    counted = write((aten.ne if is_any else aten.eq).Scalar, source, 0)
    counted = write(aten._to_copy.default, counted, dtype=torch.int64)
    total = write(aten.sum.dim_IntList, counted, dims, _flag(node, 2))
    return write((aten.gt if is_any else aten.eq).Scalar, total, 0)


REDUCTIONS = {
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
    aten.var.correction: _var,
    aten.std.correction: _std,
    **dict.fromkeys(operators(lambda f: f.finds_extremes), _extreme),
    aten.logsumexp.default: _logsumexp,
    **dict.fromkeys((aten._softmax.default, aten._log_softmax.default), _softmax),
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.all.default, aten.all.dim), _any_or_all),
}
