"""The cost of an operator for each row: bytes of its result, and its work in bytes that could be read meanwhile."""

from __future__ import annotations

import math

import sympy
import torch
from torch import fx

from ..ir import Placed, is_random
from .indexing import accesses
from .pointwise import is_pointwise
from .shape import VIEWS

aten = torch.ops.aten

FLOPS_PER_BYTE = 6.0
"""Floating-point operations in the time in which one byte is read: what makes matrix products worth storing."""

_FREE = VIEWS | {aten.reshape.default, aten.full.default}
"""Views, and constants."""

_PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}
"""Matrix products, and the position of the first factor."""


def bytes_per_row(program: Placed, node: fx.Node) -> float:
    """Bytes of one row of a value."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return math.inf
    return math.prod(_width(program, size) for size in program.shape(node)) * value.element_size()


def _width(program: Placed, size: sympy.Expr) -> int:
    """Entries of a row in a dimension: 3 in ``3*edges``; of a length of each graph, as many as the example had."""
    if size.is_Integer:
        return int(size)
    space = program.space_of(size)  # of its own may be 2*edges
    if space is not None:
        return 1 if space.sharded else program.captured.hint((space.all_of or space).symbol)
    number = size.as_coeff_Mul()[0]
    return int(number) if number.is_Integer else 1


def load_per_row(program: Placed, node: fx.Node) -> float:
    """What loading one row of a value costs, in bytes; of a value and its transpose, better the value."""
    return bytes_per_row(program, node) * (1.001 if node.target in _FREE else 1.0)


def work_per_row(program: Placed, node: fx.Node) -> float:
    """What computing one row of an operator costs, in bytes moved in the same time."""
    if is_random(node):
        return math.inf  # a random number drawn again is another one
    if node.target in _FREE:
        return 0.0
    size = bytes_per_row(program, node)
    if not math.isfinite(size):
        size = sum(bytes_per_row(program, n) for n in node.all_input_nodes[:1])
    if node.target in _PRODUCTS:
        return product_flops(program, node) / FLOPS_PER_BYTE + size
    if accesses(node):
        return 1.5 * size
    return (0.3 if is_pointwise(node.target) else 1.0) * size


def product_flops(program: Placed, node: fx.Node) -> float:
    """Floating-point operations of one row of a matrix product; 0 for other operators."""
    inner = product_length(program, node)
    if inner is None:
        return 0.0
    elements = bytes_per_row(program, node) / node.meta["val"].element_size()
    return 2 * (int(inner) if inner.is_Integer else 1) * elements


def product_length(program: Placed, node: fx.Node) -> sympy.Expr | None:
    """How many products are added up for each element of a matrix product; None for other operators."""
    if node.target not in _PRODUCTS:
        return None
    first = node.args[_PRODUCTS[node.target]]
    return program.shape(first)[-1]  # type: ignore[arg-type]
