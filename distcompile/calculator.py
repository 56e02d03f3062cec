"""``distcompile.distribute``: switch an ASE calculator's model to a compiled one, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .aliases import ALIASES
from .api import DistributedModel, Lowering, compile
from .load import load
from .runtime.world import World, default_world
from .told import told
from .tree import flatten


def load_calculator(name: str) -> Any:
    """Build an ASE calculator from an alias or from ``package.module:factory`` or ``file.py:factory``.

    Raises:
        ValueError: there is no such factory, or it fails; the message says what was tried.
    """
    path = ALIASES.get(name, name)
    if ":" not in path:
        raise ValueError(
            f"{name!r} is neither one of {', '.join(sorted(ALIASES))} nor an import path such as "
            "'package.module:factory' or 'file.py:factory'."
        )
    factory = load(path)
    try:
        return factory()
    except Exception as error:  # whatever goes wrong in somebody's package
        raise ValueError(f"{path} makes no calculator: {told(error)}.") from error


def distribute(
    calculator: Any, world: World | None = None, memory: int | None = None, lowering: Lowering = "eager"
) -> Any:
    """Switch every model that an ASE calculator holds to a compiled one; compiled at its first call.

    Args:
        calculator: any ASE calculator that holds an ``nn.Module``; changed in place.
        world: who executes; the default process group if there is one, else one rank.
        memory: bytes that a rank may use for one evaluation.
        lowering: as for `distcompile.compile`.

    Returns:
        The same calculator. Energies, forces, stresses and moments are whole on every rank.

    Raises:
        TypeError: the calculator holds no ``nn.Module``.
    """
    modules = _modules(calculator)
    if not modules:
        raise TypeError(
            f"{type(calculator).__name__} holds no torch.nn.Module in its attributes, so there is no model to "
            "distribute. Pass the calculator that wraps the model itself."
        )
    for module in modules:
        if not isinstance(module.forward, _Forward):
            module.forward = _Forward(module, world or default_world(), memory, lowering)  # type: ignore[method-assign]
    return calculator


def statistics(calculator: Any) -> list[dict[str, Any]]:
    """`DistributedModel.stats` of a distributed calculator's last evaluation; empty before the first."""
    for module in _modules(calculator):
        if isinstance(module.forward, _Forward) and module.forward.last is not None:
            model, args = module.forward.last
            return model.stats(*args)
    return []


def received(calculator: Any, atoms: Any) -> tuple[DistributedModel, tuple[Any, ...]]:
    """The compiled model that a distributed calculator calls for a structure, and what it calls it with.

    The model is not called: this takes what the calculator itself does, its neighbour list and its graph object.
    """
    forwards = [m.forward for m in _modules(calculator) if isinstance(m.forward, _Forward)]
    for forward in forwards:
        forward.only_receives = True
    try:
        calculate(calculator, atoms)
    except _Received as found:
        return found.model, found.graph
    finally:
        for forward in forwards:
            forward.only_receives = False
    raise TypeError(f"{type(calculator).__name__} did not call its model.")


def calculate(calculator: Any, atoms: Any) -> None:
    """Make a calculator evaluate all that it has for a structure."""
    wanted = [p for p in ("energy", "forces", "stress", "magmoms") if p in calculator.implemented_properties]
    if not atoms.pbc.all() and "stress" in wanted:
        wanted.remove("stress")  # ASE refuses a stress without a cell
    calculator.reset()
    calculator.calculate(atoms.copy(), wanted, ["positions", "numbers", "cell", "pbc"])


class _Received(BaseException):
    """Takes what a calculator calls its model with past whatever the calculator does with exceptions."""

    def __init__(self, model: DistributedModel, graph: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.graph = model, graph


class _Forward:
    """Takes the place of a module's ``forward``; one compiled model for each set of keyword options."""

    def __init__(self, module: nn.Module, world: World, memory: int | None, lowering: Lowering) -> None:
        self._stock = module.forward
        self._options: dict[str, Any] = {"world": world, "memory": memory, "lowering": lowering}
        self._models: dict[str, DistributedModel] = {}
        self.last: tuple[DistributedModel, tuple[Any, ...]] | None = None
        self.only_receives = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with_tensors = {name: value for name, value in kwargs.items() if flatten(value)[0]}
        options = {name: value for name, value in kwargs.items() if name not in with_tensors}
        graph = (*args, with_tensors) if with_tensors else args
        key = repr(sorted(options.items()))
        if key not in self._models:
            stock = _WithTensors(self._stock) if with_tensors else self._stock
            self._models[key] = compile(stock, graph, model_kwargs=options, **self._options)
        model = self._models[key]
        if self.only_receives:
            raise _Received(model, graph)
        self.last = (model, graph)
        # A model that takes its forces itself returns plain numbers, in training mode too; the calculator counts on it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not model.differentiates):
            return model(*graph)


class _WithTensors:
    """Calls a forward whose last positional argument holds the keyword arguments that are tensors."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self.__self__ = getattr(forward, "__self__", None)

    def __call__(self, *args: Any, **options: Any) -> Any:
        *positional, keywords = args
        return self._forward(*positional, **keywords, **options)


def _modules(calculator: Any) -> list[nn.Module]:
    """The models of a calculator: its modules with weights, if any has, not what prepares their graphs."""
    found = list(_outermost(calculator))
    return [module for module in found if next(module.parameters(), None) is not None] or found


def _outermost(holder: Any, depth: int = 3) -> Iterator[nn.Module]:
    """The outermost modules in an object's attributes and their containers."""
    if isinstance(holder, nn.Module):
        yield holder
    elif depth:
        if isinstance(holder, dict):
            inside = list(holder.values())
        elif isinstance(holder, list | tuple):
            inside = list(holder)
        else:
            inside = list(getattr(holder, "__dict__", {}).values())
        for value in inside:
            if not isinstance(value, str | bytes | int | float | type):
                yield from _outermost(value, depth - 1)
