"""Rows of all ranks on every rank, for what no rule divides, and the way back.

    gather_rows     owned rows -> all rows, in the order of the whole graph
    scatter_rows    a summand of all rows on every rank -> the sum, owned rows

They are each other's adjoints, summed over ranks: <gather_rows(x), y> = <x, scatter_rows(y)>. From all rows a rank
takes its own by an index, as it takes rows of any table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ir.operators import Crossing, Facts, register
from ..world import active, communicator


@torch.library.custom_op("distcompile::gather_rows", mutates_args=())
def _gather_rows(rows: Tensor, order: Tensor, counts: Tensor, dim: int, outer: int = 1, inner: int = 1) -> Tensor:
    """Owned rows -> the rows of all ranks, in the order of the whole graph.

    Args:
        rows: owned rows along dimension `dim`.
        order: the global numbers of the rows that ranks own, by rank.  # Shape: [n_rows], int64
        counts: the number of rows that each rank owns.  # Shape: [n_ranks], int64 on the CPU
        dim: the dimension that counts rows.
        outer: the number of times that all rows come in it, one after another.
        inner: the number of entries that each row has in it, one after another.
    """
    comm = communicator()
    receive = counts.tolist()
    own = _first(rows, dim, (outer, receive[comm.rank], inner)).contiguous()
    everyone = own.repeat(comm.size, *[1] * (own.dim() - 1))
    by_rank = comm.all_to_all(everyone, [len(own)] * comm.size, receive)
    whole = torch.empty_like(by_rank).index_copy_(0, order.to(rows.device), by_rank)
    return _back(whole, dim)


def _first(value: Tensor, dim: int, factors: tuple[int, int, int]) -> Tensor:
    """[rows, ...] of a value whose dimension `dim` is a product with rows in the middle."""
    split = value.reshape(*value.shape[:dim], *factors, *value.shape[dim + 1 :])
    return split.movedim(dim + 1, 0)


def _back(rows: Tensor, dim: int) -> Tensor:
    """The inverse of `_first`."""
    return rows.movedim(0, dim + 1).flatten(dim, dim + 2).contiguous()


@torch.library.custom_op("distcompile::scatter_rows", mutates_args=())
def _scatter_rows(whole: Tensor, order: Tensor, counts: Tensor, dim: int, outer: int = 1, inner: int = 1) -> Tensor:
    """A summand of all rows on every rank -> the owned rows of the sum. Arguments as of `gather_rows`."""
    comm = communicator()
    send = counts.tolist()
    by_rank = _first(whole, dim, (outer, sum(send), inner)).index_select(0, order.to(whole.device))
    mine = send[comm.rank]
    parts = comm.all_to_all(by_rank, send, [mine] * comm.size)
    return _back(parts.reshape(comm.size, mine, *by_rank.shape[1:]).sum(0), dim)


@_gather_rows.register_fake
def _(rows: Tensor, order: Tensor, counts: Tensor, dim: int, outer: int = 1, inner: int = 1) -> Tensor:
    shape = list(rows.shape)
    shape[dim] = order.shape[0] * outer * inner
    return rows.new_empty(shape)


@_scatter_rows.register_fake
def _(whole: Tensor, order: Tensor, counts: Tensor, dim: int, outer: int = 1, inner: int = 1) -> Tensor:
    shape: list[Any] = list(whole.shape)
    shape[dim] = torch.library.get_ctx().new_dynamic_size() * outer * inner
    return whole.new_empty(shape)


gather_rows = torch.ops.distcompile.gather_rows.default
scatter_rows = torch.ops.distcompile.scatter_rows.default

register(gather_rows, Facts(crosses=Crossing("all", dim=3)))
register(scatter_rows, Facts(crosses=Crossing("own", dim=3)))


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.given, ctx.communicator = inputs[1:], communicator()


def _gather_backward(ctx: Any, gradient: Tensor) -> Any:
    with active(ctx.communicator):
        return scatter_rows(gradient, *ctx.given), *[None] * 5


def _scatter_backward(ctx: Any, gradient: Tensor) -> Any:
    with active(ctx.communicator):
        return gather_rows(gradient, *ctx.given), *[None] * 5


_gather_rows.register_autograd(_gather_backward, setup_context=_remember)
_scatter_rows.register_autograd(_scatter_backward, setup_context=_remember)
