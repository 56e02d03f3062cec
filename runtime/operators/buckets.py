"""Messages that start together leave as one, whatever their spaces and dtypes.

b = bucket()
p = halo_exchange_start(x, ..., bucket=b)
q = halo_reduce_start(y, ..., bucket=b)        to each rank: [bytes of x's rows][bytes of y's rows]
send(b)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, fx

from ..world import communicator


class Bucket:
    """Collects messages until it is sent."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Sequence[int], Sequence[int]]] = []
        self._received: list[Tensor] = []
        self._arrived: Callable[[], Tensor] | None = None

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        """Like the method of a communicator, but the rows travel in the message of this bucket."""
        number = len(self._parts)
        self._parts.append((rows, send, receive))
        return lambda: self._take(number)

    def send(self) -> None:
        """Begin the message."""
        outgoing = [_in_bytes(rows, send) for rows, send, _ in self._parts]
        incoming = [_in_bytes(rows, receive) for rows, _, receive in self._parts]
        pieces = [_as_bytes(rows).split(sizes) for (rows, _, _), sizes in zip(self._parts, outgoing, strict=True)]
        joint = torch.cat(list(chain.from_iterable(zip(*pieces, strict=True))))
        self._arrived = communicator().all_to_all_start(joint, _sums(outgoing), _sums(incoming))
        self._parts = [(rows.new_empty((0, *rows.shape[1:])), send, receive) for rows, send, receive in self._parts]

    def _take(self, number: int) -> Tensor:
        """The rows that came for one of the messages."""
        if self._arrived is not None:
            incoming = [_in_bytes(rows, receive) for rows, _, receive in self._parts]
            pieces = self._arrived().split(list(chain.from_iterable(zip(*incoming, strict=True))))
            self._received = [torch.cat(pieces[i :: len(self._parts)]) for i in range(len(self._parts))]
            self._arrived = None
        rows, _, receive = self._parts[number]
        return self._received[number].view(rows.dtype).view(sum(receive), *rows.shape[1:])


@fx.has_side_effect
def bucket() -> Bucket:
    """Begin to collect messages."""
    return Bucket()


@fx.has_side_effect
def send(collected: Bucket) -> None:
    """Send what was collected."""
    collected.send()


def _as_bytes(rows: Tensor) -> Tensor:
    return rows.contiguous().view(-1).view(torch.uint8)


def _in_bytes(rows: Tensor, counts: Sequence[int]) -> list[int]:
    """The bytes of given numbers of rows."""
    width = rows.shape[1:].numel() * rows.element_size()
    return [n * width for n in counts]


def _sums(sizes: Sequence[Sequence[int]]) -> list[int]:
    """The sum over messages of what goes to, or comes from, each rank."""
    return [sum(each) for each in zip(*sizes, strict=True)]
