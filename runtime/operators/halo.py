"""The communication operators of a rewritten graph.

`halo_exchange` copies rows from their owners to the ranks that read them; `halo_reduce` adds contributions made
elsewhere to the owner's rows. They are each other's adjoints, and `all_reduce` (`all_reduces` of several) is its own:

    <halo_exchange(x), y> = <x, halo_reduce(y)>       summed over ranks

Where less is to be sent, `halo_gather` fetches the halo rows alone, for a rank to compute on, and `halo_join` puts what
it made of them beside owned rows; `halo_scatter` adds what was computed on halo rows to owned rows:

    halo_exchange(x) = halo_join(x, halo_gather(x))
    halo_reduce([x, h]) = halo_scatter(h, x)            <halo_gather(x), h> = <x, halo_scatter(h, 0)>

They are ``torch.library`` operators with shapes for tracing and gradients for differentiating again. A tiled graph,
which nobody differentiates, starts messages and waits for them (see `messages`), and joins in place by `halo_join_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import UnsupportedOp
from ...ir.operators import Crossing, Facts, Linear, register
from ..world import active, communicator
from .messages import start, wait


@torch.library.custom_op("distcompile::halo_exchange", mutates_args=())
def _halo_exchange(
    rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, places: Tensor | None = None
) -> Tensor:
    """Owned rows -> owned rows followed by halo rows.

    Arguments as of `messages.start`.
    """
    return wait(start("exchange", rows, send_rows, splits, halo_rows, dim, places=places), rows)


@torch.library.custom_op("distcompile::halo_reduce", mutates_args=())
def _halo_reduce(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    reduction: str = "sum",
    places: Tensor | None = None,
) -> Tensor:
    """Owned rows followed by halo rows -> owned rows, with every rank's halo rows added at their owner.

    The adjoint of `halo_exchange`. Arguments as of `messages.start`.
    """
    return wait(start("reduce", rows, send_rows, splits, halo_rows, dim, reduction, places), rows)


@torch.library.custom_op("distcompile::halo_gather", mutates_args=())
def _halo_gather(
    rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, places: Tensor | None = None
) -> Tensor:
    """Owned rows -> halo rows. Arguments as of `messages.start`."""
    return wait(start("gather", rows, send_rows, splits, halo_rows, dim, places=places))


@torch.library.custom_op("distcompile::halo_scatter", mutates_args=())
def _halo_scatter(
    halo: Tensor, send_rows: Tensor, splits: Tensor, rows: Tensor, dim: int, places: Tensor | None = None
) -> Tensor:
    """Owned rows and contributions of this rank's halo rows -> owned rows with every rank's contributions.

    Args:
        halo: contributions to rows of other ranks, along dimension `dim`.
        rows: owned rows along dimension `dim`; the rest as of `messages.start`.
    """
    return wait(start("scatter", halo, send_rows, splits, None, dim, places=places), rows)


@torch.library.custom_op("distcompile::halo_join", mutates_args=())
def _halo_join(rows: Tensor, halo: Tensor, halo_rows: int, dim: int) -> Tensor:
    """Owned rows and halo rows -> owned rows followed by halo rows."""
    return torch.cat([rows, halo], dim)


@fx.has_side_effect
def halo_join_(rows: Tensor, halo: Tensor, halo_rows: int, dim: int) -> Tensor:
    """`halo_join` in place: `rows` has owned rows, followed by room for the halo rows, which are written there."""
    rows.narrow(dim, rows.shape[dim] - halo_rows, halo_rows).copy_(halo)
    return rows


@torch.library.custom_op("distcompile::all_reduce", mutates_args=())
def _all_reduce(value: Tensor, reduction: str = "sum") -> Tensor:
    """The sum of every rank's summand, or the largest (``amax``) or smallest (``amin``) of every rank's value."""
    return communicator().all_reduce(value, reduction)


@torch.library.custom_op("distcompile::all_reduces", mutates_args=())
def _all_reduces(values: Sequence[Tensor], reduction: str) -> list[Tensor]:
    """`all_reduce` of several values of one dtype in one message.

    The reduction has no default: PyTorch's gradients of operators on lists need all arguments.
    """
    flat = communicator().all_reduce(torch.cat([v.reshape(-1) for v in values]), reduction)
    parts = flat.split([v.numel() for v in values])
    return [part.reshape(v.shape).clone() for part, v in zip(parts, values, strict=True)]


def _resized(rows: Tensor, dim: int, more: Any) -> Tensor:
    shape = list(rows.shape)
    shape[dim] = shape[dim] + more
    return rows.new_empty(shape)


@_halo_exchange.register_fake
def _(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, places: Any = None) -> Tensor:
    return _resized(rows, dim, halo_rows)


@_halo_reduce.register_fake
def _(
    rows: Tensor,
    send_rows: Tensor,
    splits: Tensor,
    halo_rows: int,
    dim: int,
    reduction: str = "sum",
    places: Any = None,
) -> Tensor:
    return _resized(rows, dim, -halo_rows)


@_halo_gather.register_fake
def _(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int, places: Any = None) -> Tensor:
    shape: list[Any] = list(rows.shape)
    shape[dim] = halo_rows
    return rows.new_empty(shape)


@_halo_scatter.register_fake
def _(halo: Tensor, send_rows: Tensor, splits: Tensor, rows: Tensor, dim: int, places: Any = None) -> Tensor:
    return torch.empty_like(rows)


@_halo_join.register_fake
def _(rows: Tensor, halo: Tensor, halo_rows: int, dim: int) -> Tensor:
    return _resized(rows, dim, halo_rows)


@_all_reduce.register_fake
def _(value: Tensor, reduction: str = "sum") -> Tensor:
    return torch.empty_like(value)


@_all_reduces.register_fake
def _(values: Sequence[Tensor], reduction: str) -> list[Tensor]:
    return [torch.empty_like(v) for v in values]


_library = torch.library.Library("distcompile", "FRAGMENT")
_library.define("stop_gradient(Tensor value) -> Tensor")


@torch.library.impl(_library, "stop_gradient", "CompositeExplicitAutograd")
def _stop_gradient(value: Tensor) -> Tensor:
    """The same value, held fixed when a program is differentiated: the model detached it."""
    return value.clone()


@torch.library.impl(_library, "stop_gradient", "Autograd")
def _stop_gradient_autograd(value: Tensor) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return stop_gradient(value)  # type: ignore[no-any-return]


stop_gradient = torch.ops.distcompile.stop_gradient.default
halo_exchange = torch.ops.distcompile.halo_exchange.default
halo_reduce = torch.ops.distcompile.halo_reduce.default
halo_gather = torch.ops.distcompile.halo_gather.default
halo_scatter = torch.ops.distcompile.halo_scatter.default
halo_join = torch.ops.distcompile.halo_join.default
all_reduce = torch.ops.distcompile.all_reduce.default
all_reduces = torch.ops.distcompile.all_reduces.default

register(stop_gradient, Facts(pointwise=True, linear=Linear()))
register(halo_exchange, Facts(crosses=Crossing("readers", dim=4), puts_beside=3))
register(halo_gather, Facts(crosses=Crossing("readers", dim=4)))
register(halo_reduce, Facts(crosses=Crossing("owners", dim=4)))
register(halo_scatter, Facts(crosses=Crossing("owners", dim=4)))
register(halo_join, Facts(puts_beside=2))
register(halo_join_, Facts(puts_beside=2, in_place=True))
register(all_reduce, Facts(crosses=Crossing("sum")))
register(all_reduces, Facts(crosses=Crossing("sum")))


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    """Keep the operands of the adjoint, and the communicator: a backward pass may run in another thread."""
    ctx.given = inputs[1:]
    ctx.communicator = communicator()


def _adjoint(operator: Any) -> Any:
    """The backward pass of an operator by its adjoint, which takes the same arguments after the first."""

    def backward(ctx: Any, gradient: Any) -> Any:
        _has_gradient(ctx.given[-1])
        plain = [g.contiguous() for g in gradient] if isinstance(gradient, list) else gradient.contiguous()
        with active(ctx.communicator):
            return operator(plain, *ctx.given), *[None] * len(ctx.given)

    return backward


def _has_gradient(reduction: str) -> None:
    if reduction != "sum":
        raise UnsupportedOp(f"a message by {reduction} has no gradient: it does not know how many rows were as large")


def _exchange_backward(ctx: Any, gradient: Tensor) -> Any:
    *plan, places = ctx.given
    with active(ctx.communicator):
        return halo_reduce(gradient.contiguous(), *plan, "sum", places), *[None] * 5


def _reduce_backward(ctx: Any, gradient: Tensor) -> Any:
    *plan, reduction, places = ctx.given
    _has_gradient(reduction)
    with active(ctx.communicator):
        return halo_exchange(gradient.contiguous(), *plan, places), *[None] * 6


_halo_exchange.register_autograd(_exchange_backward, setup_context=_remember)
_halo_reduce.register_autograd(_reduce_backward, setup_context=_remember)
_all_reduce.register_autograd(_adjoint(all_reduce), setup_context=_remember)
_all_reduces.register_autograd(_adjoint(all_reduces), setup_context=_remember)


def _remember_gather(ctx: Any, inputs: Any, output: Any) -> None:
    rows, ctx.send_rows, ctx.splits, _, ctx.dim, ctx.places = inputs
    ctx.owned, ctx.communicator = rows.shape[ctx.dim], communicator()


def _gather_backward(ctx: Any, gradient: Tensor) -> Any:
    shape = list(gradient.shape)
    shape[ctx.dim] = ctx.owned
    with active(ctx.communicator):
        nothing = gradient.new_zeros(shape)
        found = halo_scatter(gradient, ctx.send_rows, ctx.splits, nothing, ctx.dim, ctx.places)
    return found, None, None, None, None, None


def _remember_scatter(ctx: Any, inputs: Any, output: Any) -> None:
    halo, ctx.send_rows, ctx.splits, _, ctx.dim, ctx.places = inputs
    ctx.halo, ctx.communicator = halo.shape[ctx.dim], communicator()


def _scatter_backward(ctx: Any, gradient: Tensor) -> Any:
    with active(ctx.communicator):
        found = halo_gather(gradient, ctx.send_rows, ctx.splits, ctx.halo, ctx.dim, ctx.places)
    return found, None, None, gradient, None, None


def _remember_join(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.halo, ctx.dim = inputs[2:]


def _join_backward(ctx: Any, gradient: Tensor) -> Any:
    owned = gradient.shape[ctx.dim] - ctx.halo
    return gradient.narrow(ctx.dim, 0, owned), gradient.narrow(ctx.dim, owned, ctx.halo), None, None


_halo_gather.register_autograd(_gather_backward, setup_context=_remember_gather)
_halo_scatter.register_autograd(_scatter_backward, setup_context=_remember_scatter)
_halo_join.register_autograd(_join_backward, setup_context=_remember_join)
