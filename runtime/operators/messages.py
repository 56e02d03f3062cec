"""Messages in two phases: rows leave when one starts, and the rank works on until it waits for those that come in.

    p = start("exchange", x, ...)        sends rows of x
    y = region(interior rows)            works on
    h = wait(p, x)                       puts what came in beside the rows of x

`halo` makes operators of them: an operator starts its message and waits for it at once. Messages that start together
may share a bucket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, fx

from ..world import communicator
from .buckets import Bucket

Kind = Literal["exchange", "gather", "reduce", "scatter"]
"""The kinds of messages about halo rows. Owners send to readers (an exchange puts halo rows beside owned ones, a gather
returns them alone), or readers send back to owners (a reduction has owned and halo rows in one table, a scatter
apart)."""


@dataclasses.dataclass(frozen=True)
class Pending:
    """A message under way."""

    arrived: Callable[[], Tensor]
    """Waits for the rows that come in."""
    finish: Callable[..., Tensor]
    """Makes the message's result from these rows, and from the rows given to `wait`."""


@fx.has_side_effect
def start(
    kind: Kind,
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int | None,
    dim: int,
    reduction: str = "sum",
    places: Tensor | None = None,
    in_place: bool = False,
    bucket: Bucket | None = None,
) -> Pending:
    """Begin a message.

    Args:
        kind: the purpose of the message.
        rows: along dimension `dim`: owned rows (of an exchange or a gather), owned rows followed by halo rows (of a
            reduction), halo rows (of a scatter).
        send_rows: the owned rows that other ranks read, by reader.  # Shape: [n_sent], int64
        splits: rows sent to and received from each rank.  # Shape: [2, n_ranks], int64 on the CPU
        halo_rows: number of halo rows of this rank; a scatter needs none.
        dim: the dimension that counts rows.
        reduction: of a reduction, ``sum``, ``amax`` or ``amin``.
        places: the halo rows that cross; `send_rows` and `splits` are about these only, and the others are zero. All
            cross if None.  # Shape: [n_received], int64
        in_place: `rows` has owned rows, followed by halo rows or room for them, and the message ends there: nothing may
            read halo rows before an exchange is over, nor add to them once a reduction was started.
        bucket: sends the rows, with those of other messages.
    """
    halo = halo_rows or 0
    if kind in ("exchange", "gather"):
        owned = _parts(rows, halo, dim)[0] if in_place else rows.movedim(dim, 0)
        arrived = _to_readers(owned, send_rows, splits, bucket)
    else:
        sent = _parts(rows, halo, dim)[1] if kind == "reduce" else rows.movedim(dim, 0)
        arrived = _to_owners(sent, splits, places, bucket)

    def exchanged(received: Tensor, rows: Tensor) -> Tensor:
        came = _placed(received, halo, places)
        if in_place:
            _parts(rows, halo, dim)[1].copy_(came)
            return rows
        return torch.cat([rows.movedim(dim, 0), came]).movedim(0, dim).contiguous()

    def gathered(received: Tensor) -> Tensor:
        return _placed(received, halo, places).movedim(0, dim).contiguous()

    def reduced(returned: Tensor, rows: Tensor) -> Tensor:
        owned = _parts(rows, halo, dim)[0]
        if in_place:
            _combined(owned, send_rows, returned, reduction)
            return rows.narrow(dim, 0, len(owned))
        return _combined(owned.clone(), send_rows, returned, reduction).movedim(0, dim).contiguous()

    def scattered(returned: Tensor, rows: Tensor) -> Tensor:
        return _combined(rows.movedim(dim, 0).clone(), send_rows, returned, "sum").movedim(0, dim).contiguous()

    ends: dict[Kind, Callable[..., Tensor]] = {
        "exchange": exchanged,
        "gather": gathered,
        "reduce": reduced,
        "scatter": scattered,
    }
    return Pending(arrived, ends[kind])


@fx.has_side_effect
def wait(pending: Pending, *rows: Tensor) -> Tensor:
    """The result of a message. `rows` are the rows that it puts halo rows beside, or adds to; a gather has none."""
    return pending.finish(pending.arrived(), *rows)


def _parts(rows: Tensor, halo_rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Owned rows and halo rows, views of `rows` with rows first."""
    both = rows.movedim(dim, 0)
    owned = both.shape[0] - halo_rows
    return both[:owned], both[owned:]


def _to_readers(owned: Tensor, send_rows: Tensor, splits: Tensor, bucket: Bucket | None) -> Callable[[], Tensor]:
    """Send the owned rows that other ranks read."""
    send, receive = splits.tolist()
    return (bucket or communicator()).all_to_all_start(owned.index_select(0, send_rows), send, receive)


def _to_owners(halo: Tensor, splits: Tensor, places: Tensor | None, bucket: Bucket | None) -> Callable[[], Tensor]:
    """Send halo rows, all or those that cross, to their owners."""
    send, receive = splits.tolist()
    return (bucket or communicator()).all_to_all_start(
        halo if places is None else halo.index_select(0, places), receive, send
    )


def _placed(received: Tensor, halo_rows: int, places: Tensor | None) -> Tensor:
    """All halo rows, made from those that came."""
    if places is None:
        return received
    return received.new_zeros(halo_rows, *received.shape[1:]).index_copy_(0, places, received)


def _combined(owned: Tensor, send_rows: Tensor, returned: Tensor, reduction: str) -> Tensor:
    """`owned`, with contributions of other ranks added (or compared) in place."""
    if reduction == "sum":
        return owned.index_add_(0, send_rows, returned)
    return owned.index_reduce_(0, send_rows, returned, reduction)
