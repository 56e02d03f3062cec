"""Differentiate a distributed evaluation: whole tensors in, whole tensors out, on every rank.

Inside, a gradient is *partial*: each rank holds what its own rows contribute. Outside, everything is whole on every
rank. Four operators stand at the border; each one's gradient is made of the others, to any order:

    enter    whole -> inside      identity                  gradient: total
    total    inside -> whole      sum over ranks            gradient: enter
    leave    inside -> whole      identity                  gradient: enter, counted on the first rank only
    gather   rows -> whole        rows of all ranks         gradient: enter, then the rank's own rows

The halo operators inside are each other's adjoints already. An all_reduce inside has an all_reduce for a gradient,
which would count P times what P ranks hand to it: `leave` hands it over once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function

from ...errors import UnsupportedOp
from ...ir import Placement, Space
from ..division.shard import Order, gather_output, rows_of
from ..world import Communicator, World, active, communicator


class _Identity(Function):
    """The value as it is; what crosses the border is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.communicator = communicator()
        return value.view_as(value)


class _Enter(_Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        with active(ctx.communicator):
            return _Total.apply(gradient)


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.communicator = communicator()
        return ctx.communicator.all_reduce(part.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        with active(ctx.communicator):
            return _Enter.apply(gradient)


class _Leave(_Identity):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        with active(ctx.communicator):
            return _Enter.apply(gradient) * float(ctx.communicator.rank == 0)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Placement, orders: Mapping[str, Order]) -> Tensor:
        ctx.communicator, ctx.place, ctx.orders = communicator(), place, orders
        return gather_output(rows, place, orders, ctx.communicator)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        with active(ctx.communicator):
            return _own_rows(_Enter.apply(gradient), ctx.place, ctx.orders, ctx.communicator.rank), None, None


def _own_rows(value: Tensor, place: Placement, orders: Mapping[str, Order], rank: int) -> Tensor:
    for at, dim in enumerate(place.dims):
        spaces = [i for i, f in enumerate(dim) if isinstance(f, Space)]
        if not spaces:
            continue
        space: Any = dim[spaces[0]]
        order = orders[space.name][0]
        mine = rows_of(orders[space.name], rank).to(value.device)
        factors = [len(order) if isinstance(f, Space) else f for f in dim]
        split = value.reshape(*value.shape[:at], *factors, *value.shape[at + 1 :])
        rows = split.index_select(at + spaces[0], mine)
        value = rows.reshape(
            *value.shape[:at], value.shape[at] // max(len(order), 1) * len(mine), *value.shape[at + 1 :]
        )
    return value


def enter(value: Tensor) -> Tensor:
    """Hand a whole value to each rank, to be used for its own rows."""
    result: Tensor = _Enter.apply(value) if value.requires_grad else value
    return result


def leave(value: Tensor, place: Placement, orders: Mapping[str, Order]) -> Tensor:
    """Make a result whole on every rank."""
    result: Tensor = _Gather.apply(value, place, orders) if place.sharded else _Leave.apply(value)
    return result


Evaluation = Callable[[Communicator, Sequence[Tensor]], list[Tensor]]
"""One rank's evaluation: from the whole differentiable inputs to the whole outputs."""


Gradients = Callable[[Sequence[Tensor], Sequence[int], Sequence[Tensor | None]], list[Tensor | None] | None]
"""Whole gradients by some inputs (their positions), given those of the outputs; None if it has no way to them."""


@dataclasses.dataclass(frozen=True)
class Lockstep:
    """An evaluation as one differentiable step. Nothing is kept for its gradient, which evaluates once more.

    A gradient needs the ranks of this process to meet again, which they do only inside of ``World.run``. So the
    gradient is an evaluation in lockstep itself, which differentiates on every rank, and so on to any order.
    """

    world: World
    evaluation: Evaluation
    gradients: Gradients | None = None
    """Another way to the gradients, if these are not differentiated themselves."""

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return list(_Lockstep.apply(self, *inputs))

    def gradient(self, wanted: Sequence[int], n_inputs: int) -> Lockstep:
        """The step from inputs and gradients of outputs to gradients of the inputs in `wanted`."""

        def evaluation(comm: Communicator, values: Sequence[Tensor]) -> list[Tensor]:
            higher = torch.is_grad_enabled()
            # Each rank takes gradients in its own thread. Those of an accelerator would share one, in which a rank
            # that waits for another holds it up.
            with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
                inputs = [
                    v if v.requires_grad else v.detach().requires_grad_(i in wanted)
                    for i, v in enumerate(values[:n_inputs])
                ]
                outputs = self.evaluation(comm, inputs)
                pairs = [(o, g) for o, g in zip(outputs, values[n_inputs:], strict=True) if o.requires_grad]
                chosen = [inputs[i] for i in wanted]
                found = torch.autograd.grad(
                    [o for o, _ in pairs], chosen, [g for _, g in pairs], create_graph=higher, allow_unused=True
                )
            return [torch.zeros_like(x) if g is None else g for x, g in zip(chosen, found, strict=True)]

        return Lockstep(self.world, evaluation)


class _Lockstep(Function):
    """Transforms of ``torch.func`` take it, too: batches are evaluated one after the other."""

    @staticmethod
    def forward(step: Lockstep, *inputs: Tensor) -> Any:  # type: ignore[override]
        outputs = step.world.run(lambda comm: step.evaluation(comm, [x.detach() for x in inputs]))[0]
        # A result that is a weight itself would be taken for an input that is handed on.
        return tuple(o.view_as(o) if any(o is x for x in inputs) else o for o in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.step, *given = inputs
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)
        ctx.mark_non_differentiable(*(o for o in output if not o.is_floating_point()))
        ctx.set_materialize_grads(False)  # so that None stands for a value that does not vary
        ctx.like = [(o.shape, o.dtype, o.device) for o in output]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # type: ignore[override]
        inputs = ctx.saved_tensors
        if any(g is not None and is_legacy_batchedtensor(g) for g in gradients):
            raise UnsupportedOp(
                "is_grads_batched does not reach a compiled model that takes its gradients later, or is on virtual "
                "ranks. Take one gradient after the other, or use torch.func.jacrev or vmap."
            )
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        by_program = None
        if ctx.step.gradients is not None and not torch.is_grad_enabled():
            by_program = ctx.step.gradients(inputs, wanted, gradients)
        if by_program is None:
            zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
            gradients = tuple(zero if g is None else g for g, zero in zip(gradients, zeros, strict=True))
            by_program = ctx.step.gradient(wanted, len(inputs))([*inputs, *gradients])
        found = iter(by_program)
        return None, *[next(found) if needed else None for needed in ctx.needs_input_grad[1:]]

    @staticmethod
    def jvp(ctx: Any, _: None, *directions: Tensor | None) -> Any:  # type: ignore[override]
        """The derivative in a direction. The gradient is linear in its weights, and is differentiated by these."""
        inputs = ctx.saved_tensors
        moved = [i for i, d in enumerate(directions) if d is not None]
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
        back = ctx.step.gradient(moved, len(inputs))
        forth = back.gradient(range(len(inputs), len(inputs) + len(zeros)), len(inputs) + len(zeros))
        return tuple(forth([*inputs, *zeros, *(directions[i] for i in moved)]))  # type: ignore[list-item]

    @staticmethod
    def vmap(info: Any, in_dims: Any, step: Lockstep, *inputs: Tensor) -> Any:
        pairs = list(zip(inputs, in_dims[1:], strict=True))
        entries = [[x if d is None else x.select(d, i) for x, d in pairs] for i in range(info.batch_size)]
        outputs = zip(*(_Lockstep.apply(step, *entry) for entry in entries), strict=True)
        stacked = tuple(torch.stack(o) for o in outputs)
        return stacked, (0,) * len(stacked)
