"""Compiled programs that several tests look at, each compiled once: two toys, MACE and CHGNet."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import structures
import zoo
from adversaries import LineGraphs, with_dihedrals
from toys import Eam, Gnn, random_graph

from distcompile import DistributedModel, LocalWorld
from distcompile.api import compiled_for
from distcompile.ir import Normal
from distcompile.model import Settings

RANKS = 3


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with an example, and one of other sizes."""

    make: Callable[[], Any]
    example: Callable[[], Any]
    other: Callable[[], Any]
    spaces: frozenset[str]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    package: str = "torch"


MODELS = {
    "gnn": Model(Gnn, lambda: random_graph(20), lambda: random_graph(11, 3), frozenset({"atoms", "edges"})),
    "eam": Model(
        Eam, lambda: random_graph(20, half=True), lambda: random_graph(11, 3, half=True), frozenset({"atoms", "edges"})
    ),
    "line_graphs": Model(
        lambda: LineGraphs().eval(),
        lambda: with_dihedrals()[1],
        lambda: with_dihedrals()[0],
        frozenset({"atoms", "edges", "angles", "angles2"}),
    ),
    "mace": Model(
        lambda: zoo.mace().model,
        lambda: zoo.mace().graph(structures.crystal((2, 2, 1))),
        lambda: zoo.mace().graph(structures.small_cell()),
        frozenset({"atoms", "edges"}),
        {"compute_stress": True},
        "mace",
    ),
    "chgnet": Model(
        lambda: zoo.chgnet().model,
        lambda: zoo.chgnet().graph(structures.crystal((2, 2, 1))),
        lambda: zoo.chgnet().graph(structures.small_cell()),
        frozenset({"atoms", "edges", "bonds", "angles"}),
        {"task": "efsm"},
        "chgnet",
    ),
}


def model(name: str) -> Model:
    """The model of a name; skips the test where its package is not installed."""
    found = MODELS[name]
    if importlib.util.find_spec(found.package) is None:
        pytest.skip(f"{found.package} is not installed in this environment")
    return found


@functools.cache
def compiled(name: str) -> tuple[DistributedModel, Any, dict[str, Normal]]:
    """A model compiled for `RANKS` ranks, its example, and the program after each pass."""
    given = model(name)
    after: dict[str, Normal] = {}
    example = given.example()
    settings = Settings(LocalWorld(RANKS), after=after.__setitem__)
    return compiled_for(given.make(), example, settings, given.kwargs)[0], example, after
