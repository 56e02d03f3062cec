"""Products of vectors with the second derivatives of an energy, as one function to compile.

    products(graph, weights)  =>  g = dE / dx,   d<g, weights> / dx

The model is called as it is. One that takes its forces itself frees what that takes, and may return an energy without
gradients: while it runs, gradients keep their graph, and what they were taken of is noted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calculators.entries import as_stock
from ..capture.threads import replaced
from ..errors import DerivativeError
from ..ir.tree import flatten

Choice = str | Callable[[Any], Tensor] | None
"""The energy: a path in the result, a function of the result, or None for what the model itself differentiates."""


@dataclasses.dataclass(frozen=True)
class Products:
    """Calls a model; takes its arguments and, last, weights in the shape of the positions.

    Returns the energy of the result, that which was differentiated, its gradient and the product with the weights.
    """

    call: Callable[..., Any]
    module: nn.Module | None
    positions: str
    """Path of the tensor to differentiate by, among the arguments."""
    energy: Choice

    @property
    def __self__(self) -> nn.Module | None:
        """The module that is run, under the name that bound methods have for it."""
        return self.module

    def __call__(self, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluate (energy, differentiated energy, gradient, product)."""
        *args, weights = given
        with torch.enable_grad():
            leaves, tree = flatten(tuple(args))
            place = [leaf.path for leaf in leaves].index(self.positions)
            x = leaves[place].tensor.clone().requires_grad_()
            changed = [x if i == place else leaf.tensor for i, leaf in enumerate(leaves)]
            with as_stock(), _gradients_kept() as taken:
                named = _chosen(self.energy, self.call(*tree.unflatten(changed)))
            energy = _differentiable(named, taken)
            (gradient,) = torch.autograd.grad(energy, x, create_graph=True, allow_unused=True)
            if gradient is None:
                raise DerivativeError(
                    f"The energy does not depend on {self.positions} in a way that can be followed. Name the leaf with "
                    "positions=; if it is that one, the model detaches it (x.detach(), x.data, NumPy): take that out."
                )
            product = torch.zeros_like(x)
            if gradient.requires_grad:
                weighted = (gradient * weights).sum()
                (product,) = torch.autograd.grad(weighted, x, materialize_grads=True)
        return (energy if named is None else named).detach().sum(), energy.detach(), gradient.detach(), product


def _chosen(energy: Choice, result: Any) -> Tensor | None:
    if energy is None:
        return None
    if callable(energy):
        return energy(result)
    return next(leaf.tensor for leaf in flatten(result)[0] if leaf.path == energy)  # type: ignore[no-any-return]


_Taken = tuple[Sequence[Tensor], Sequence[Tensor | None]]
"""The tensors that a model differentiated, and the weight of each."""


def _differentiable(named: Tensor | None, taken: Sequence[_Taken]) -> Tensor:
    """The energy itself; if it came without gradients, the tensor that the model took gradients of."""
    if named is not None and named.requires_grad:
        return named.sum()
    if taken:
        outputs, weights = taken[0]
        pairs = zip(outputs, weights, strict=True)
        return torch.stack([(x * w).sum() for x, w in pairs if w is not None]).sum()
    raise DerivativeError(
        "The energy carries no gradient, so it has no derivatives: the model detaches it, or computes it under "
        "torch.no_grad(). Return it as it was computed (without .detach(), .data or .item()), or name another result "
        "with energy=."
    )


@contextmanager
def _gradients_kept() -> Iterator[list[_Taken]]:
    """Keep the graphs of gradients, so that they can be differentiated.

    The list is filled with what was differentiated.
    """
    autograd: Any = torch.autograd  # where autograd.grad and Tensor.backward look it up
    original = autograd._engine_run_backward
    taken: list[_Taken] = []

    def noted(outputs: Any, weights: Any, keep: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append((outputs, weights))
        return original(outputs, weights, True, *args, **kwargs)

    with replaced(autograd, "_engine_run_backward", noted):
        yield taken
