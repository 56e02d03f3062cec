"""The product of rows with a constant sparse matrix, as an operator that can be traced and differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("distcompile::sparse_mm", mutates_args=())
def _sparse_mm(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """``x @ matrix`` for a matrix in compressed sparse rows.

    Args:
        x: dense rows. Shape: [n, k].
        rows: where each row of the matrix begins in `columns`. Shape: [k + 1], int64.
        columns: of the entries. Shape: [n_entries], int64.
        values: the entries. Shape: [n_entries].
        width: number of columns of the matrix.
    """
    if x.shape[0] == 0:
        return x.new_zeros(0, width)
    return x @ torch.sparse_csr_tensor(rows, columns, values, (x.shape[1], width), check_invariants=False)


@_sparse_mm.register_fake
def _(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    return x.new_empty(x.shape[0], width)


def _remember(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.matrix = inputs[1:]
    ctx.inner = inputs[0].shape[1]


def _backward(ctx: Any, gradient: Tensor) -> Any:
    rows, columns, values, width = ctx.matrix
    # Tracers know no sparse tensors, so the matrix is written out entry by entry.
    row = torch.arange(ctx.inner, device=rows.device).repeat_interleave(rows.diff(), output_size=columns.shape[0])
    matrix = values.new_zeros(ctx.inner, width).index_put((row, columns), values)
    return gradient @ matrix.T, None, None, None, None


_sparse_mm.register_autograd(_backward, setup_context=_remember)

sparse_mm = torch.ops.distcompile.sparse_mm.default
