"""Functions of one number a row, looked up in a table of polynomials instead of computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = 6
"""Of a polynomial of each interval and function, the constant one first."""


def factors(order: int) -> list[float]:
    """What a derivative of a power of t has in front: of ``t**j`` with j = order, order + 1, ..."""
    return [float(math.perm(j, order)) for j in range(order, COEFFICIENTS)]


@torch.library.custom_op("distcompile::radial_lookup", mutates_args=())
def _radial_lookup(x: Tensor, table: Tensor, low: float, high: float, order: int) -> Tensor:
    """Functions of each number, or derivatives of these functions.

    Args:
        x: one number a row. Shape: [rows].
        table: polynomials in the place within an interval, from 0 to 1. Shape: [intervals, COEFFICIENTS, functions].
        low: where the first interval begins. Below, functions go on as the first polynomial's value there.
        high: where the last one ends; above, functions are constant.
        order: 0 for values, n for the n-th derivatives. They are those of the polynomials, so a gradient that is made
            of them is the gradient of the values, to the last bits.
    """
    intervals = table.shape[0]
    scale = intervals / (high - low)
    place = (x.double() - low) * scale  # places in single precision would be as coarse as the table is long
    inside = place.clamp(0, intervals)
    at = inside.floor().clamp(max=intervals - 1).nan_to_num().long()
    t = (inside - at).to(x.dtype)[:, None]
    result = x.new_zeros(x.shape[0], table.shape[2])
    if order < COEFFICIENTS:
        rows = table.index_select(0, at)
        for j, factor in reversed(list(enumerate(factors(order), order))):
            result = result * t + factor * rows[:, j]
    if order:
        result = torch.where(((place >= 0) & (place <= intervals))[:, None], result * scale**order, 0.0 * t)
    return result


@_radial_lookup.register_fake
def _(x: Tensor, table: Tensor, low: float, high: float, order: int) -> Tensor:
    return x.new_empty(x.shape[0], table.shape[2])


def _remember(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, table, *ctx.where = inputs
    ctx.save_for_backward(x, table)


def _backward(ctx: Any, gradient: Tensor) -> Any:
    low, high, order = ctx.where
    slopes = radial_lookup(*ctx.saved_tensors, low, high, order + 1)
    return (gradient * slopes).sum(1), None, None, None, None


_radial_lookup.register_autograd(_backward, setup_context=_remember)

radial_lookup = torch.ops.distcompile.radial_lookup.default
