"""Gradients that a caller takes of a compiled model's results, by a program of their own.

    loss(dmodel(graph)).backward()     =>     (graph, gradients of results) -> gradients of weights and inputs

Autograd would keep every value of an evaluation until its gradient is asked for, edges and all. For a graph that is
large, nothing is kept. Evaluation and gradient are compiled as one function instead, which is tiled and divided as the
model is, and stays within the same memory. The price is that the evaluation runs once more. Second derivatives are left
to autograd.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import CaptureError, UnsupportedOp
from .ir import Tiled
from .ir.tree import Leaf, flatten
from .predict.account import untiled_bytes

MANY = 2**28
"""Bytes that autograd may keep of an evaluation, if the user does not say how much memory there is."""


class Compiled(Protocol):
    """A compiled model."""

    derived: dict[Any, Any]

    @property
    def stock(self) -> Callable[..., Any]:
        """The stock model's call."""

    @property
    def module(self) -> nn.Module | None:
        """The module that the call runs."""

    def derive(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        """A function of the stock model, compiled in the same way."""


class Outside:
    """The gradients of one evaluation."""

    def __init__(
        self, model: Compiled, graph: tuple[Any, ...], leaves: Sequence[Leaf], ranks: int, memory: int | None
    ) -> None:
        """
        Args:
            model: what was evaluated.
            graph: what it was called with.
            leaves: the tensors of that.
            ranks: how many execute.
            memory: bytes that a rank may use for one evaluation; None if the user does not say.
        """
        self.model, self.graph, self.leaves = model, graph, leaves
        self._ranks, self._most = ranks, memory or MANY
        self._versions = _versions(leaves)

    def pays(self, program: Tiled, sizes: Mapping[str, int]) -> bool:
        """True if autograd would keep too much of an evaluation of so many rows, on as many ranks as there are."""
        return untiled_bytes(program, {name: -(-n // self._ranks) for name, n in sizes.items()}) > self._most

    def __call__(
        self, inputs: Sequence[Tensor], wanted: Sequence[int], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None] | None:
        """The gradients by some of the inputs, given those of the results; None if they cannot be compiled.

        Args:
            inputs: weights, and tensors of the graph object.
            wanted: positions of those to differentiate by.
            gradients: of each result; None where there is none.

        Raises:
            RuntimeError: the graph object has changed since the evaluation.
        """
        if self._versions != _versions(self.leaves):
            raise RuntimeError(
                "A tensor of the graph object that a compiled model was called with has been modified by an inplace "
                "operation since, and is needed for gradients. Take them first, or give the model a copy."
            )
        number = {id(leaf.tensor): n for n, leaf in enumerate(self.leaves)}
        places = tuple(number.get(id(inputs[i]), -1) for i in wanted)
        weights = tuple(inputs[i] for i, place in zip(wanted, places, strict=True) if place < 0)
        given = tuple(i for i, g in enumerate(gradients) if g is not None)
        key = ("gradients", places, tuple(map(id, weights)), given, _modes(self.model))
        if key not in self.model.derived:
            names = [leaf.path for leaf in flatten(self.graph, counts=True)[0]]
            paths = tuple(names[place] if place >= 0 else "" for place in places)
            function = _Function(self.model.stock, paths, weights, given)
            self.model.derived[key] = self.model.derive(function)
        compiled = self.model.derived[key]
        if compiled is None:
            return None
        try:
            return list(compiled(*self.graph, tuple(g for g in gradients if g is not None)))
        except (CaptureError, UnsupportedOp) as error:
            warnings.warn(
                "Gradients of this model are not compiled, so all values of an evaluation are kept for them. They are "
                f"right, but take more memory. {str(error).splitlines()[0]}",
                stacklevel=2,
            )
            self.model.derived[key] = None
            return None


def _versions(leaves: Sequence[Leaf]) -> list[int]:
    return [0 if leaf.tensor.is_inference() else leaf.tensor._version for leaf in leaves]


def _modes(model: Compiled) -> tuple[bool, ...]:
    return tuple(m.training for m in model.module.modules()) if model.module is not None else ()


@dataclasses.dataclass(frozen=True)
class _Function:
    """Calls a model; takes its arguments and, last, the gradients of its results. Returns those of its inputs."""

    call: Callable[..., Any]
    paths: tuple[str, ...]
    """Of each input to differentiate by, its path among the arguments; empty for weights."""
    weights: tuple[Tensor, ...]
    given: tuple[int, ...]
    """The results whose gradients are given."""

    def __call__(self, *given: Any) -> list[Tensor | None]:
        *args, gradients = given
        leaves, tree = flatten(tuple(args))
        values = {leaf.path: leaf.tensor for leaf in leaves}
        for path in self.paths:
            if path:
                values[path] = values[path].detach().requires_grad_()
        with torch.enable_grad():
            results, _ = flatten(self.call(*tree.unflatten(list(values.values()))))
            weights = iter(self.weights)
            by = [values[path] if path else next(weights) for path in self.paths]
            chosen = [results[i].tensor for i in self.given]
            return list(torch.autograd.grad(chosen, by, list(gradients), allow_unused=True))
