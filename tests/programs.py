"""Compiled programs that several tests look at, each compiled once: two toys, MACE and CHGNet."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import structures
import zoo
from adversaries import LineGraphs, with_dihedrals
from toys import Eam, Gnn, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld, api
from distcompile.ir import Program

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
def compiled(name: str) -> tuple[DistributedModel, Any, dict[str, Program]]:
    """A model compiled for `RANKS` ranks, its example, and the program after each pass."""
    given = model(name)
    after: dict[str, Program] = {}

    def noted(compiler_pass: Callable[[Program], Program]) -> Callable[[Program], Program]:
        def run(program: Program) -> Program:
            after[compiler_pass.__name__] = compiler_pass(program)
            return after[compiler_pass.__name__]

        return run

    example = given.example()
    with mock.patch.object(api, "PIPELINE", tuple(noted(p) for p in api.PIPELINE)):
        result = distcompile.compile(
            given.make(), example, model_kwargs=given.kwargs, world=LocalWorld(RANKS), validate=False
        )
    return result, example, after
