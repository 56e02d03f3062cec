"""The distinct rows of a whole graph's integers, found while the index program runs on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.operators import Facts, register

_LARGEST = 2**62
"""No code of a row is larger: it is one number made of the row's integers."""


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
    code = torch.zeros(n, dtype=torch.int64, device=device)
    among = 1
    for column in columns if n else ():
        table = column.reshape(n, -1).long()
        each = zip(table.unbind(1), table.amin(0).tolist(), table.amax(0).tolist(), strict=True)
        for values, low, high in each:
            if low == high:
                continue
            span = high - low + 1
            if among * span > _LARGEST:
                code, among = _numbered(code, among)
            if among * span > _LARGEST:
                values, span = torch.unique(values, return_inverse=True)[1], n
            else:
                values = values - low
            code, among = code * span + values, among * span
    kind, count = _numbered(code, among) if n else (code, 0)
    example = torch.empty(count, dtype=torch.int64, device=device)
    example[kind] = torch.arange(n, device=device)
    return example, kind


def _numbered(codes: Tensor, among: int) -> tuple[Tensor, int]:
    """Each code's number among the different ones, and how many these are. Codes are below `among`."""
    if among > 4 * len(codes) + 1024:
        found, numbers = torch.unique(codes, return_inverse=True)
        return numbers, len(found)
    is_there = torch.zeros(among, dtype=torch.bool, device=codes.device)  # much faster than to sort them
    is_there[codes] = True
    numbers = is_there.cumsum(0)
    return numbers[codes] - 1, int(numbers[-1])


@_kinds.register_fake
def _(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    kind = columns[0].new_empty(columns[0].shape[0], dtype=torch.int64)
    return kind.new_empty(count), kind


kinds = torch.ops.distcompile.kinds.default
register(kinds, Facts(data_dependent=True))
