"""The cost of an operator for each row: bytes of its result, and its work in bytes that could be read meanwhile."""

from __future__ import annotations

import math

import sympy
import torch
from torch import fx

from ..ir import Placed
from ..ir.operators import facts

FLOPS_PER_BYTE = 6.0
"""Floating-point operations in the time in which one byte is read. They make matrix products worth storing."""


def bytes_per_row(program: Placed, node: fx.Node) -> float:
    """Bytes of one row of a value."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return math.inf
    return math.prod(_width(program, size) for size in program.shape(node)) * value.element_size()


def _width(program: Placed, size: sympy.Expr) -> int:
    """Entries of a row in a dimension: 3 in ``3*edges``; for a length of each graph, that of the example."""
    if size.is_Integer:
        return int(size)
    space = program.space_of(size)  # 2*edges may have a space of its own
    if space is not None:
        return 1 if space.sharded else program.captured.hint((space.all_of or space).symbol)
    number = size.as_coeff_Mul()[0]
    return int(number) if number.is_Integer else 1


def load_per_row(program: Placed, node: fx.Node) -> float:
    """The cost of loading one row of a value, in bytes.

    It is slightly higher for a view, so that of a value and its transpose the value is loaded.
    """
    return bytes_per_row(program, node) * (1.001 if facts(node).free else 1.0)


def work_per_row(program: Placed, node: fx.Node) -> float:
    """The cost of computing one row of an operator, in bytes that are moved in the same time."""
    row = facts(node)
    if row.random:
        return math.inf  # a random number drawn again is another one
    if row.free:
        return 0.0
    size = bytes_per_row(program, node)
    if not math.isfinite(size):
        size = sum(bytes_per_row(program, n) for n in node.all_input_nodes[:1])
    if row.product is not None:
        return product_flops(program, node) / FLOPS_PER_BYTE + size
    if row.rows is not None:
        return 1.5 * size
    return (0.3 if row.pointwise else 1.0) * size


def product_flops(program: Placed, node: fx.Node) -> float:
    """Floating-point operations of one row of a matrix product; 0 for other operators."""
    inner = product_length(program, node)
    if inner is None:
        return 0.0
    elements = bytes_per_row(program, node) / node.meta["val"].element_size()
    return 2 * (int(inner) if inner.is_Integer else 1) * elements


def product_length(program: Placed, node: fx.Node) -> sympy.Expr | None:
    """The number of products that are added up for each element of a matrix product; None for other operators."""
    first = facts(node).product
    return None if first is None else program.shape(node.args[first])[-1]  # type: ignore[arg-type]
