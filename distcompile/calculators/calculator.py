"""``distcompile.distribute``: switch an ASE calculator's model to a compiled one, in place."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from ..default_device import as_the_user_has_it, on_the_host
from ..errors import NoIndexSpaceError, in_one_line
from ..layout.evaluate import Evaluator
from ..layout.layout import Layout
from ..layout.structure import Structure
from ..model import DistributedModel
from ..passes import Lowering
from ..runtime.division.plan import Division
from ..runtime.execution.executor import Executor
from ..runtime.execution.preparing import Prepared
from ..runtime.world import World
from ..show.explain import code
from .aliases import ALIASES
from .entries import (
    Options,
    Received,
    Watch,
    enter,
    entries,
    is_receiving,
    now,
    only_receiving,
    warn_undistributed,
    watching,
)
from .graphs import Graphs
from .holders import calculators_in, models_in
from .load import load


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
    except Exception as error:  # a package may raise anything
        raise ValueError(f"{path} makes no calculator: {in_one_line(error)}.") from error


def distribute(
    calculator: Any,
    world: World | None = None,
    memory: int | None = None,
    lowering: Lowering = "auto",
    radial_error: float | None = None,
    graphs: Literal["learned", "stock"] = "learned",
) -> Any:
    """Switch every model that an ASE calculator holds to a compiled one; compiled at its first call.

    Of a model, ``forward`` and every other method that computes with its weights are compiled. Models that the
    calculator is given later are switched at its next call. A copy of the calculator, or one that was sent to another
    process, is switched too, and compiles anew.

    Args:
        calculator: any ASE calculator that holds an ``nn.Module``, or other calculators that do; or a model of
            torch-sim; changed in place.
        world: the ranks that execute; the default process group if there is one, else one rank.
        memory: bytes that a rank may use for one evaluation.
        lowering: as for `distcompile.compile`.
        radial_error: as for `distcompile.compile`.
        graphs: what makes the graph objects of structures. With ``"learned"``, what they are made of is learned from
            what the package makes of small structures like the first ones; it is tested on them, and on the results.
            From then on neighbours are found, and graph objects made, without the package. With ``lowering="auto"``
            that is after three evaluations, so results change by rounding there; else within the first one. What
            cannot be learned stays with the package, as all does with ``"stock"``.

    Returns:
        The same calculator. Energies, forces, stresses and moments are whole on every rank.

    Raises:
        TypeError: the calculator holds no ``nn.Module``.
    """
    if graphs not in ("learned", "stock"):
        raise ValueError(f'unknown graphs {graphs!r}: choose "learned" or "stock"')
    options = Options(world, memory, lowering, radial_error, graphs == "learned")
    if not _switch(calculator, options):
        raise TypeError(
            f"{type(calculator).__name__} holds no torch.nn.Module in its attributes, so there is no model to "
            "distribute. Pass the calculator that wraps the model itself; if it makes its model when it is first "
            "used, use it once before."
        )
    for one in calculators_in(calculator):  # of calculators within, each learns what its own graph objects are made of
        calculates = callable(getattr(type(one), "calculate", None)) and not isinstance(one.calculate, Calculate)
        if calculates and (one is calculator or models_in(one)):
            one.calculate = Calculate(one, options)
            forget(one)  # the next results are of the switched models
    return calculator


def forget(calculator: Any) -> None:
    """Drop the results that the calculator, and each calculator within it, keeps."""
    for one in calculators_in(calculator):
        if callable(getattr(one, "reset", None)):
            one.reset()
        elif hasattr(one, "results"):
            one.atoms, one.results = None, {}


def _switch(calculator: Any, options: Options) -> list[nn.Module]:
    """Put entries into all models of a calculator; return the models."""
    modules = models_in(calculator)
    for module in modules:
        enter(module, options)
    return modules


class Calculate:
    """Takes the place of a calculator's ``calculate``.

    It switches new models, and warns of what was not distributed.
    """

    def __init__(self, calculator: Any, options: Options) -> None:
        self.__setstate__((calculator, options, vars(calculator).get("calculate")))

    def __getstate__(self) -> Any:
        return self._calculator, self._options, self._own

    def __setstate__(self, state: Any) -> None:
        self._calculator, self._options, self._own = state
        self.graphs = Graphs(self._calculator, self._options)
        self._known: list[nn.Module] = []
        """Models that were seen to compute nothing outside of their entries."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The stock method."""
        if self._own is not None:
            return self._own  # type: ignore[no-any-return]
        return type(self._calculator).calculate.__get__(self._calculator)  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(args, kwargs) if self._options.learns else None
        if is_receiving() or asked is None or not isinstance(getattr(self._calculator, "results", None), dict):
            return self._calculate(*args, **kwargs)
        atoms, properties = asked
        with on_the_host():
            results = self.graphs.results(atoms, properties)
            if results is None:
                results = self.graphs.calculated(atoms, properties, self._results)
        self._calculator.atoms, self._calculator.results = atoms.copy(), results
        return None

    def _results(self, atoms: Any, properties: list[str]) -> dict[str, Any]:
        """What the package calculates for a structure."""
        from ase.calculators.calculator import all_changes

        self._calculate(atoms, properties, all_changes)
        return dict(self._calculator.results)

    def _calculate(self, *args: Any, **kwargs: Any) -> Any:
        modules = _switch(self._calculator, self._options)
        result = self._run(modules, args, kwargs)
        made = _switch(self._calculator, self._options)
        return result if _same(made, modules) else self._run(made, args, kwargs)  # made by the calculation itself

    def _run(self, modules: list[nn.Module], args: Any, kwargs: Any) -> Any:
        if _same(modules, self._known):
            with as_the_user_has_it():
                return self.__wrapped__(*args, **kwargs)
        found: set[str] = set()
        start = now()
        with watching(Watch(modules, found.update)), as_the_user_has_it():
            result = self.__wrapped__(*args, **kwargs)
        who = type(self._calculator).__name__
        if found:
            warn_undistributed(who, found)
        elif not any(entry.last and entry.last[0] > start for m in modules for entry in entries(m)):
            methods = [f"{type(m).__name__}.{entry.name}" for m in modules for entry in entries(m)]
            warnings.warn(
                f"{who} computed without a call of a model that distcompile distributes, so it ran whole on every "
                f"rank. Found were {', '.join(methods)}: let it call one of these, with tensors.",
                stacklevel=2,
            )
        else:
            self._known = modules
        return result


def _asked(args: Any, kwargs: Any) -> tuple[Any, list[str]] | None:
    """The atoms and the properties that a call of a ``calculate`` asks for, as ASE calls it; else None."""
    from ase import Atoms

    given = dict(zip(("atoms", "properties", "system_changes"), args, strict=False)) | kwargs
    atoms, properties = given.get("atoms"), given.get("properties")
    if not isinstance(atoms, Atoms) or not isinstance(properties, list | tuple) or len(given) > 3:
        return None
    return atoms, list(properties)


def _same(one: Sequence[nn.Module], other: Sequence[nn.Module]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def statistics(calculator: Any) -> list[dict[str, Any]]:
    """`DistributedModel.stats` of a distributed calculator's last evaluation; empty before the first."""
    if (around := _last_around(calculator)) is not None:
        evaluator, structure = around
        return evaluator.statistics(structure)
    last = _last_call(calculator)
    return last[1].stats(*last[2]) if last is not None else []


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The last evaluation of a distributed calculator."""

    model: DistributedModel
    executor: Executor
    prepared: Prepared
    division: Division
    """Of the whole graph object among all ranks."""
    layout: Layout | None
    """How the graph object was made, if not by the package."""


def evaluated(calculator: Any) -> Evaluated | None:
    """The last evaluation of a distributed calculator; None before the first.

    Raises:
        NoIndexSpaceError: there was nothing to divide in it.
    """
    if (around := _last_around(calculator)) is not None:
        evaluator, structure = around
        learned = evaluator.learned
        return Evaluated(learned.model, *evaluator.divided_whole(structure), learned.layout)
    if (last := _last_call(calculator)) is None:
        return None
    _, model, graph = last
    executor, prepared = model.prepared(*graph)
    return Evaluated(model, executor, prepared, executor.layout(prepared).division, None)


def described(calculator: Any) -> list[tuple[str, str]]:
    """How a distributed calculator's last evaluation ran, in words: what of it, and how. Empty before the first."""
    model = _last_model(calculator)
    if model is None:
        return []
    graphs = model.made_of.splitlines()[0] if model.made_of else "Graph objects are made by the package, so far."
    found = [("graph objects", graphs.removeprefix("Graph objects are ").rstrip("."))]
    with contextlib.suppress(NoIndexSpaceError):  # the stock model ran
        found.append(("code", code(model.program)))
    return found


def explanation(calculator: Any, detail: bool = False) -> str:
    """`DistributedModel.explain` of the model of a distributed calculator's last evaluation."""
    model = _last_model(calculator)
    return model.explain(detail) if model is not None else "Nothing was evaluated yet."


def _last_model(calculator: Any) -> DistributedModel | None:
    if (around := _last_around(calculator)) is not None:
        return around[0].learned.model
    last = _last_call(calculator)
    return last[1] if last is not None else None


def _last_around(calculator: Any) -> tuple[Evaluator, Structure] | None:
    """The last evaluation, if it went around the package."""
    graphs: Graphs | None = getattr(getattr(calculator, "calculate", None), "graphs", None)
    return graphs.last if graphs is not None else None


def _last_call(calculator: Any) -> tuple[float, DistributedModel, tuple[Any, ...]] | None:
    ran = [entry.last for module in models_in(calculator) for entry in entries(module) if entry.last is not None]
    return max(ran, key=lambda last: last[0]) if ran else None


def received(calculator: Any, atoms: Any) -> tuple[DistributedModel, tuple[Any, ...]]:
    """The compiled model that a distributed calculator calls for a structure, and the arguments of that call.

    The model is not called: this takes what the calculator itself does, its neighbour list and its graph object. Of
    several models, it is the first that is called.
    """
    try:
        with only_receiving():
            calculate(calculator, atoms)
    except Received as found:
        return found.model, found.graph
    raise TypeError(f"{type(calculator).__name__} did not call its model.")


def calculate(calculator: Any, atoms: Any) -> None:
    """Make a calculator evaluate all that it has for a structure."""
    wanted = [p for p in ("energy", "forces", "stress", "magmoms") if p in calculator.implemented_properties]
    if not atoms.pbc.all() and "stress" in wanted:
        wanted.remove("stress")  # ASE refuses a stress without a cell
    forget(calculator)
    calculator.calculate(atoms.copy(), wanted, ["positions", "numbers", "cell", "pbc"])
