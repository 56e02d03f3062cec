"""Operators that check the integers of a whole graph while the index program runs on them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ...ir.operators import Facts, register


@torch.library.custom_op("distcompile::distinct_rows", mutates_args=())
def _distinct_rows(rows: Tensor, within: Tensor | None = None) -> Tensor:
    """Return `rows`, which a model overwrites, if no row is among them twice: its value would not be determined.

    With `within`, they are columns of these rows: no column of a row may be there twice.
    """
    places = rows if within is None else torch.stack([within.to(rows.dtype), rows])
    if places.unique(dim=-1).shape[-1] != rows.numel():
        raise InputError(
            "The model overwrites one row twice (x[index] = values with a repeated index), which has no defined "
            "result. Check the graph for duplicates, or add with index_add or index_put(accumulate=True)."
        )
    return rows.clone()


@_distinct_rows.register_fake
def _(rows: Tensor, within: Tensor | None = None) -> Tensor:
    return torch.empty_like(rows)


distinct_rows = torch.ops.distcompile.distinct_rows.default
register(distinct_rows, Facts(same_values=True))
