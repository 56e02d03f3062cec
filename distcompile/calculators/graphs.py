"""Evaluations of a calculator that go around its package: graph objects are made by what was learned of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..errors import RankError, in_one_line
from ..layout.evaluate import Evaluator
from ..layout.learn import Call, check, learn
from ..layout.observed import NoRecipeError
from ..layout.structure import Structure, structure_of
from ..model import DistributedModel
from .entries import Options, Received, only_receiving, recording

AFTER = 3
"""Evaluations after which the graph object is learned if results may change by rounding between calls; else the first.
A few evaluations are not worth it."""

ATTEMPTS = 6
"""Kinds of structures of which nothing could be learned, after which no other one is tried."""

Calculate = Callable[[Any, list[str]], dict[str, Any]]
"""Lets the package calculate properties of ASE's atoms; returns all results."""


class Graphs:
    """Learns what a calculator's graph objects are made of, and evaluates by that."""

    def __init__(self, calculator: Any, options: Options) -> None:
        self._calculator = calculator
        self._due = 1 if options.lowering != "auto" else AFTER
        self._learned: list[Evaluator] = []
        self._failed: dict[Any, str] = {}
        """Kinds of structures of which nothing could be learned, and why."""
        self._changing: set[str] = set()
        """Attributes of the calculator that its calculations change."""
        self._evaluations = 0
        self.last: tuple[Evaluator, Structure] | None = None
        """The last evaluation that went around the package."""

    def results(self, atoms: Any, properties: list[str]) -> dict[str, Any] | None:
        """The calculator's results for a structure; None if the package has to make them."""
        if not self._learned:
            return None
        structure = structure_of(atoms)
        for evaluator in self._holding(structure, self._options_of(atoms)):
            if evaluator.learned.results.keys() >= set(properties):
                self.last = evaluator, structure
                return evaluator(structure)
        return None

    def _holding(self, structure: Structure, options: str) -> list[Evaluator]:
        """What was learned and holds for a structure."""
        return [evaluator for evaluator in self._learned if evaluator.learned.holds(structure, options)]

    def _options_of(self, atoms: Any) -> str:
        """What the user says beside the structure: in the atoms, and in settings of the calculator."""
        settings = sorted(s for s in _settings(self._calculator) if s[0] not in self._changing)
        return f"{_said(atoms)} {settings}"

    def calculated(self, atoms: Any, properties: list[str], calculate: Calculate) -> dict[str, Any]:
        """The results of the package for a structure, of which something is learned if it is time to."""
        before = _settings(self._calculator)
        with recording() as calls:
            results = calculate(atoms, properties)
        self.last = None
        self._evaluations += 1
        structure, options = structure_of(atoms), self._options_of(atoms)
        kind = (*_kind(atoms), options)
        known = kind in self._failed or len(self._failed) >= ATTEMPTS or self._holding(structure, options)
        if len(calls) != 1 or self._evaluations < self._due or known:
            return results
        model = calls[0][0]
        evaluator, why = _learned(calculate, properties, atoms, structure, results)
        self._changing |= {name for name, value in _settings(self._calculator) - before}
        if len(set(_everywhere(model, str(evaluator.learned.layout) if evaluator else why))) > 1:
            evaluator, why = None, "ranks learned different things"
        if evaluator is None:
            self._failed[kind] = why
            model.made_of = f"Graph objects are made whole by the package on every rank: {why}."
            return results
        evaluator.learned = dataclasses.replace(evaluator.learned, options=self._options_of(atoms))
        self._learned.append(evaluator)
        how = f", whole on every rank: {evaluator.why_whole}" if evaluator.why_whole else ", each rank its rows"
        model.made_of = f"Graph objects are made without the package{how}.\n{evaluator.learned.layout}"
        if self._due > 1:
            return results
        self.last = evaluator, structure
        return results | evaluator(structure)  # as all calls after this one


def _learned(
    calculate: Calculate, properties: list[str], atoms: Any, structure: Structure, results: dict[str, Any]
) -> tuple[Evaluator | None, str]:
    """What is learned from structures like this one, whose results are known; else why nothing is."""
    try:
        found = Evaluator(learn(_ask(calculate, properties), atoms))
        check(found.learned, found(structure), results)
    except NoRecipeError as error:
        return None, str(error)
    except RankError:
        raise
    except Exception as error:  # a package may raise anything
        return None, in_one_line(error)
    return found, ""


def _everywhere(model: DistributedModel, text: str) -> list[str]:
    found: list[str] = model.world.run(lambda comm: comm.all_gather_objects(text))[0]
    return found


def _kind(atoms: Any) -> Any:
    return frozenset(atoms.numbers.tolist()), tuple(map(bool, atoms.pbc)), tuple(atoms.arrays)


def _said(atoms: Any) -> str:
    """What a user's atoms say beside their structure, which a package may read."""
    plain = {k: v for k, v in atoms.info.items() if isinstance(v, str | int | float | bool)}
    constraints = [type(constraint).__name__ for constraint in atoms.constraints]
    return repr((sorted(plain.items(), key=str), constraints))


def _settings(calculator: Any) -> set[tuple[str, str]]:
    """Plain attributes of a calculator, and those of its parameters."""
    held = {**vars(calculator), **dict(getattr(calculator, "parameters", None) or {})}
    return {(name, repr(value)) for name, value in held.items() if isinstance(value, str | int | float | bool)}


def _ask(calculate: Calculate, properties: list[str]) -> Callable[[Any, bool], Call]:
    def ask(atoms: Any, evaluate: bool) -> Call:
        try:
            with recording() as calls:
                if evaluate:
                    results = calculate(atoms, properties)
                else:
                    with only_receiving():
                        calculate(atoms, properties)
        except Received as found:
            return Call(found.model, found.graph, None, {})
        if len(calls) != 1:
            raise NoRecipeError(f"the calculator called its models {len(calls)} times")
        return Call(*calls[0], results)

    return ask
