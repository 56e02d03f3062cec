"""Messages in two phases: rows leave when one starts, and the rank works on until it waits for those that come in.

    p = halo_exchange_start(x, ...)      sends rows of x
    y = region(interior rows)            works on
    h = wait(p, x)                       puts what came in beside the rows of x

`halo` makes operators of them: an operator starts its message and waits for it at once. Messages that start together
may share a bucket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, fx

from ..world import communicator
from .buckets import Bucket


@dataclasses.dataclass(frozen=True)
class Pending:
    """A message under way."""

    arrived: Callable[[], Tensor]
    """Waits for the rows that come in."""
    finish: Callable[..., Tensor]
    """Makes of them, and of the rows given to `wait`, what the message is for."""


@fx.has_side_effect
def wait(pending: Pending, *rows: Tensor) -> Tensor:
    """The result of a message. `rows` are those that it puts halo rows beside, or adds to; a gather has none."""
    return pending.finish(pending.arrived(), *rows)


@fx.has_side_effect
def halo_exchange_start(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_exchange`."""

    def finish(received: Tensor, rows: Tensor) -> Tensor:
        halo = _placed(received, halo_rows, places)
        return torch.cat([rows.movedim(dim, 0), halo]).movedim(0, dim).contiguous()

    return Pending(_to_readers(rows.movedim(dim, 0), send_rows, splits, bucket), finish)


@fx.has_side_effect
def halo_exchange_start_(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_exchange_`: nothing may read the halo rows of `rows` before they have come."""

    def finish(received: Tensor, rows: Tensor) -> Tensor:
        _, halo = _parts(rows, halo_rows, dim)
        halo.copy_(_placed(received, halo_rows, places))
        return rows

    return Pending(_to_readers(_parts(rows, halo_rows, dim)[0], send_rows, splits, bucket), finish)


@fx.has_side_effect
def halo_gather_start(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_gather`."""

    def finish(received: Tensor) -> Tensor:
        return _placed(received, halo_rows, places).movedim(0, dim).contiguous()

    return Pending(_to_readers(rows.movedim(dim, 0), send_rows, splits, bucket), finish)


@fx.has_side_effect
def halo_reduce_start(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    reduction: str = "sum",
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_reduce`: nothing may be added to the halo rows of `rows` from now on, to owned ones it may."""

    def finish(returned: Tensor, rows: Tensor) -> Tensor:
        owned = _parts(rows, halo_rows, dim)[0].clone()
        return _combined(owned, send_rows, returned, reduction).movedim(0, dim).contiguous()

    return Pending(_to_owners(_parts(rows, halo_rows, dim)[1], splits, places, bucket), finish)


@fx.has_side_effect
def halo_reduce_start_(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    reduction: str = "sum",
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_reduce_`, as `halo_reduce_start` does."""

    def finish(returned: Tensor, rows: Tensor) -> Tensor:
        owned, _ = _parts(rows, halo_rows, dim)
        _combined(owned, send_rows, returned, reduction)
        return rows.narrow(dim, 0, len(owned))

    return Pending(_to_owners(_parts(rows, halo_rows, dim)[1], splits, places, bucket), finish)


@fx.has_side_effect
def halo_scatter_start(
    halo: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    dim: int,
    places: Tensor | None = None,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a `halo_scatter`."""

    def finish(returned: Tensor, rows: Tensor) -> Tensor:
        return _combined(rows.movedim(dim, 0).clone(), send_rows, returned, "sum").movedim(0, dim).contiguous()

    return Pending(_to_owners(halo.movedim(dim, 0), splits, places, bucket), finish)


def _parts(rows: Tensor, halo_rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Owned rows and halo rows, views of `rows` with rows first."""
    both = rows.movedim(dim, 0)
    owned = both.shape[0] - halo_rows
    return both[:owned], both[owned:]


def _to_readers(owned: Tensor, send_rows: Tensor, splits: Tensor, bucket: Bucket | None) -> Callable[[], Tensor]:
    """Send those owned rows that other ranks read."""
    send, receive = splits.tolist()
    return (bucket or communicator()).all_to_all_start(owned.index_select(0, send_rows), send, receive)


def _to_owners(halo: Tensor, splits: Tensor, places: Tensor | None, bucket: Bucket | None) -> Callable[[], Tensor]:
    """Send halo rows, or those of them that cross, to their owners."""
    send, receive = splits.tolist()
    return (bucket or communicator()).all_to_all_start(
        halo if places is None else halo.index_select(0, places), receive, send
    )


def _placed(received: Tensor, halo_rows: int, places: Tensor | None) -> Tensor:
    """All halo rows, of those that came."""
    if places is None:
        return received
    return received.new_zeros(halo_rows, *received.shape[1:]).index_copy_(0, places, received)


def _combined(owned: Tensor, send_rows: Tensor, returned: Tensor, reduction: str) -> Tensor:
    """`owned`, with contributions of other ranks added (or compared) in place."""
    if reduction == "sum":
        return owned.index_add_(0, send_rows, returned)
    return owned.index_reduce_(0, send_rows, returned, reduction)
