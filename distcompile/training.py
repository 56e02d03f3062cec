"""``distcompile.training_step``: a model, its loss and the gradients of all parameters, as one program.

    step = distcompile.training_step(model, loss, graph, targets)
    for graph, targets in batches:
        optimizer.zero_grad()
        value = step(graph, targets)      # sets .grad of the parameters, the same on every rank
        optimizer.step()

What a training loop computes by ``loss(model(graph), targets).backward()`` is compiled whole, as an evaluation is: it
is divided among ranks, runs region by region, and keeps what fits in memory. Optimisers, schedulers, clipping and
averages of weights are torch's own, since gradients are whole on every rank.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .api import checked, compiled_for
from .errors import TrainingError
from .ir.tree import flatten
from .model import DistributedModel, Settings, arguments, parameter_names
from .passes import Lowering
from .runtime.world import World, default_world

Loss = Callable[[Any, Any], Any]
"""From the model's result and the targets to a tensor of one number, or to a tuple that begins with it."""


def training_step(
    model: nn.Module,
    loss: Loss,
    example_graph: Any,
    example_targets: Any,
    *,
    model_kwargs: dict[str, Any] | None = None,
    world: World | None = None,
    lowering: Lowering = "auto",
    memory: int | None = None,
    validate: bool = True,
) -> TrainingStep:
    """Compile one step of training for any number of ranks.

    Args:
        model: the module that is trained. It has to be in the mode (``model.train()``) and on the device of training.
        loss: called with the model's result and the targets. It returns a tensor of one number, or a tuple that begins
            with it; what follows (errors to be logged) is returned by each step. It may be a module with parameters.
        example_graph: a graph object as `model` takes it; a tuple for several positional inputs. It may be a batch of
            several structures. Later ones may have any sizes.
        example_targets: what `loss` compares with: tensors, in any lists, dictionaries and data classes. Those with a
            row for each atom or edge are divided as the graph is, in the order of the user's rows.
        model_kwargs: keyword arguments of every call of the model (``training=True``).
        world: as for `distcompile.compile`.
        lowering: as for `distcompile.compile`.
        memory: as for `distcompile.compile`.
        validate: compare loss and gradients with those of the stock model, as `distcompile.compile` does.

    Raises:
        TypeError, ValueError: an argument is none of what it may be.
        TrainingError: the loss is not one number, or depends on no parameter.
        CaptureError, UnsupportedOp, ValidationError: as of `distcompile.compile`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module whose parameters are trained, not {type(model).__name__}")
    settings = Settings(default_world() if world is None else world, memory, lowering)
    step = TrainingStep(model, loss, settings, model_kwargs or {})
    step._compile(example_graph, example_targets, validate)
    return step


@dataclasses.dataclass(frozen=True)
class _Mode:
    """What a program of a step was compiled for."""

    training: tuple[bool, ...]
    """Of each module, whether it is in training mode."""
    trained: tuple[str, ...]
    """The parameters that require gradients."""


class TrainingStep:
    """A compiled training step. Call it with a graph object and targets; it sets ``.grad`` and returns the loss."""

    def __init__(self, model: nn.Module, loss: Loss, settings: Settings, model_kwargs: dict[str, Any]) -> None:
        self.model, self.loss, self.settings = model, loss, settings
        self._kwargs = model_kwargs
        self._compiled: dict[_Mode, DistributedModel] = {}
        self._modules = nn.ModuleList([model, *([loss] if isinstance(loss, nn.Module) else [])])

    def __call__(self, graph: Any, targets: Any) -> Any:
        """Compute the loss, and add its gradients to ``.grad`` of all parameters, as ``backward`` does.

        Returns:
            What the loss function returned, detached, whole on every rank.

        Raises:
            InputError, RankError, OutOfMemory: as of a compiled model.
        """
        _refuse_numbers(targets)
        mode = self._mode()
        if mode not in self._compiled:
            self._compile(graph, targets, validate=False)
        with torch.no_grad():
            returned, gradients = self._compiled[mode](*arguments(graph), targets)
        for name, parameter in self._trained().items():
            gradient = gradients[name]
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return returned

    def _compile(self, graph: Any, targets: Any, validate: bool) -> None:
        """Compile the step for the mode that the model is in."""
        _refuse_numbers(targets)
        given = arguments(graph)
        names = [*parameter_names(self.model), *(f"input_{i}" for i in range(len(given)))][: len(given)]
        function = _Function(self.model, self.loss, self._kwargs, self._trained(), (*names, "targets"))
        args = (*given, targets)
        compiled, executor = compiled_for(function, args, self.settings, module=self._modules)
        compiled.trains = False
        self._compiled[self._mode()] = compiled
        checked(compiled, executor, args, validate)

    def explain(self, detail: bool = False) -> str:
        """As `DistributedModel.explain`, of the step that was compiled last."""
        return self.compiled.explain(detail)

    def stats(self, graph: Any, targets: Any) -> list[dict[str, Any]]:
        """As `DistributedModel.stats`, of a step with this graph object and these targets."""
        return self.compiled.stats(*arguments(graph), targets)

    @property
    def compiled(self) -> DistributedModel:
        """The step that was compiled last, as a compiled model of graph and targets."""
        return self._compiled[list(self._compiled)[-1]]

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._modules.named_parameters() if p.requires_grad}

    def _mode(self) -> _Mode:
        return _Mode(
            tuple(m.training for m in self._modules.modules()),
            tuple(self._trained()),
        )


def _refuse_numbers(targets: Any) -> None:
    numbers = [path for path, number in flatten(targets, "targets")[1].numbers if type(number) is float]
    if numbers:
        raise TrainingError(
            f"{numbers[0]} is a Python number, which would be a constant of the program: every structure would be "
            "compiled for. Make it a tensor: torch.tensor(...)."
        )


@dataclasses.dataclass(frozen=True)
class _Function:
    """The function that is compiled: from graph and targets to what the loss returned, and all gradients."""

    model: nn.Module
    loss: Loss
    kwargs: dict[str, Any]
    trained: Mapping[str, nn.Parameter]
    names: tuple[str, ...]
    """Of the arguments, for messages."""

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_ONLY
        return inspect.Signature([inspect.Parameter(name, kind) for name in self.names])

    def __call__(self, *args: Any) -> tuple[Any, dict[str, Tensor | None]]:
        *graph, targets = args
        with torch.enable_grad():
            returned = self.loss(self.model(*graph, **self.kwargs), targets)
            value = returned[0] if isinstance(returned, tuple) else returned
            if not isinstance(value, Tensor) or value.numel() != 1:
                what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "no tensor"
                raise TrainingError(
                    f"The loss must be a tensor of one number (or a tuple that begins with it), but it is {what}."
                )
            if not value.requires_grad:
                raise TrainingError(
                    "The loss depends on no parameter that requires gradients. Does the model detach its results? It "
                    "may have to be in training mode, or take an argument for that: pass it in model_kwargs."
                )
            gradients = torch.autograd.grad(value.reshape(()), list(self.trained.values()), allow_unused=True)
        leaves, tree = flatten(returned)
        return tree.unflatten([leaf.tensor.detach() for leaf in leaves]), dict(
            zip(self.trained, gradients, strict=True)
        )
