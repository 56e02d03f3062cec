"""The communication operators of a rewritten graph.

`halo_exchange` copies rows from their owners to the ranks that read them; `halo_reduce` adds contributions made
elsewhere to the owner's rows. They are each other's adjoints, and `all_reduce` is its own:

    <halo_exchange(x), y> = <x, halo_reduce(y)>       summed over ranks

They are ``torch.library`` operators with shapes for tracing and gradients for differentiating again. A tiled graph,
which nobody differentiates, calls `halo_exchange_` and `halo_reduce_` where it can: they work in tables with room for
the halo, so that owned rows stay where they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..errors import UnsupportedOp
from .world import active, communicator


@torch.library.custom_op("distcompile::halo_exchange", mutates_args=())
def _halo_exchange(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> Tensor:
    """Owned rows -> owned rows followed by halo rows.

    Args:
        rows: owned rows along dimension `dim`.
        send_rows: the owned rows that other ranks read, by reader.  # Shape: [n_sent], int64
        splits: rows sent to and received from each rank.  # Shape: [2, n_ranks], int64 on the CPU
        halo_rows: number of halo rows of this rank.
        dim: the dimension that counts rows.
    """
    owned = rows.movedim(dim, 0)
    return torch.cat([owned, _received(owned, send_rows, splits)]).movedim(0, dim).contiguous()


@torch.library.custom_op("distcompile::halo_reduce", mutates_args=())
def _halo_reduce(
    rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, reduction: str = "sum"
) -> Tensor:
    """Owned rows followed by halo rows -> owned rows, with every rank's halo rows added at their owner.

    Arguments as of `halo_exchange`, of which this is the adjoint; `reduction` may also be ``amax`` or ``amin``.
    """
    owned, returned = _returned(rows, splits, halo_rows, dim)
    return _combined(owned.clone(), send_rows, returned, reduction).movedim(0, dim).contiguous()


@fx.has_side_effect
def halo_exchange_(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> Tensor:
    """`halo_exchange` in place: `rows` has owned rows, followed by room for the halo rows, which are written there."""
    both = rows.movedim(dim, 0)
    owned = both.shape[0] - halo_rows
    both[owned:] = _received(both[:owned], send_rows, splits)
    return rows


@fx.has_side_effect
def halo_reduce_(
    rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, reduction: str = "sum"
) -> Tensor:
    """`halo_reduce` in place: returns the owned rows of `rows`, a view of it."""
    owned, returned = _returned(rows, splits, halo_rows, dim)
    _combined(owned, send_rows, returned, reduction)
    return rows.narrow(dim, 0, owned.shape[0])


def _received(owned: Tensor, send_rows: Tensor, splits: Tensor) -> Tensor:
    """The halo rows, from their owners."""
    send, receive = splits.tolist()
    return communicator().all_to_all(owned.index_select(0, send_rows), send, receive)


def _returned(rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """The owned rows (a view), and what other ranks contribute to some of them."""
    both = rows.movedim(dim, 0)
    owned = both.shape[0] - halo_rows
    send, receive = splits.tolist()
    return both[:owned], communicator().all_to_all(both[owned:], receive, send)


def _combined(owned: Tensor, send_rows: Tensor, returned: Tensor, reduction: str) -> Tensor:
    """`owned`, with contributions of other ranks added (or compared) in place."""
    if reduction == "sum":
        return owned.index_add_(0, send_rows, returned)
    return owned.index_reduce_(0, send_rows, returned, reduction)


@torch.library.custom_op("distcompile::all_reduce", mutates_args=())
def _all_reduce(value: Tensor, reduction: str = "sum") -> Tensor:
    """The sum of every rank's summand, or the largest (``amax``) or smallest (``amin``) of every rank's value."""
    return communicator().all_reduce(value, reduction)


def _resized(rows: Tensor, dim: int, more: Any) -> Tensor:
    shape = list(rows.shape)
    shape[dim] = shape[dim] + more
    return rows.new_empty(shape)


@_halo_exchange.register_fake
def _(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> Tensor:
    return _resized(rows, dim, halo_rows)


@_halo_reduce.register_fake
def _(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, reduction: str = "sum") -> Tensor:
    return _resized(rows, dim, -halo_rows)


@_all_reduce.register_fake
def _(value: Tensor, reduction: str = "sum") -> Tensor:
    return torch.empty_like(value)


_library = torch.library.Library("distcompile", "FRAGMENT")
_library.define("stop_gradient(Tensor value) -> Tensor")


@torch.library.impl(_library, "stop_gradient", "CompositeExplicitAutograd")
def _stop_gradient(value: Tensor) -> Tensor:
    """The same value, held fixed when a program is differentiated: what the model detached."""
    return value.clone()


@torch.library.impl(_library, "stop_gradient", "Autograd")
def _stop_gradient_autograd(value: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return stop_gradient(value)  # type: ignore[no-any-return]


stop_gradient = torch.ops.distcompile.stop_gradient.default
halo_exchange = torch.ops.distcompile.halo_exchange.default
halo_reduce = torch.ops.distcompile.halo_reduce.default
all_reduce = torch.ops.distcompile.all_reduce.default

COLLECTIVES = (halo_exchange, halo_reduce, all_reduce)


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    """Keep what the adjoint needs, the communicator too: a backward pass may run in another thread."""
    ctx.given = inputs[1:]
    ctx.communicator = communicator()


def _adjoint(operator: Any) -> Any:
    def backward(ctx: Any, gradient: Tensor) -> Any:
        plan = [x for x in ctx.given if not isinstance(x, str)]
        how = {x for x in ctx.given if isinstance(x, str)} - {"sum"}
        if how:
            raise UnsupportedOp(f"{how.pop()} over ranks has no gradient. Detach it, as a segment softmax may.")
        with active(ctx.communicator):
            return operator(gradient.contiguous(), *plan), *[None] * len(ctx.given)

    return backward


_halo_exchange.register_autograd(_adjoint(halo_reduce), setup_context=_remember)
_halo_reduce.register_autograd(_adjoint(halo_exchange), setup_context=_remember)
_all_reduce.register_autograd(_adjoint(all_reduce), setup_context=_remember)
