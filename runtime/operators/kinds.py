"""The distinct rows of a whole graph's integers, found while the index program runs on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.operators import Facts, register


@torch.library.custom_op("distcompile::kinds", mutates_args=())
def _kinds(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One row of each kind, and the kind of each row. Rows are of one kind if they are equal in all of `columns`.

    Args:
        columns: integers or truth values.  # Shape: [n, ...] each

    Returns:
        the number of a row of each kind  # Shape: [n_kinds], int64
        the kind of each row              # Shape: [n], int64
    """
    n, device = columns[0].shape[0], columns[0].device
    kind = torch.zeros(n, dtype=torch.int64, device=device)
    count = min(n, 1)
    for column in columns:
        for values in column.reshape(n, -1).unbind(1) if n else ():
            numbers, among = _numbered(values.long())
            kind, count = _numbered(kind * among + numbers)
    example = torch.empty(count, dtype=torch.int64, device=device)
    example[kind] = torch.arange(n, device=device)
    return example, kind


def _numbered(values: Tensor) -> tuple[Tensor, int]:
    """Each value's number among the different ones, and how many these are."""
    low = int(values.min())
    span = int(values.max()) - low + 1
    if span > 4 * len(values) + 1024:
        found, numbers = torch.unique(values, return_inverse=True)
        return numbers, len(found)
    is_there = torch.zeros(span, dtype=torch.bool, device=values.device)  # much faster than to sort them
    is_there[values - low] = True
    numbers = is_there.cumsum(0)
    return numbers[values - low] - 1, int(numbers[-1])


@_kinds.register_fake
def _(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    kind = columns[0].new_empty(columns[0].shape[0], dtype=torch.int64)
    return kind.new_empty(count), kind


kinds = torch.ops.distcompile.kinds.default
register(kinds, Facts(data_dependent=True))
