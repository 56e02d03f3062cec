"""Pages that tests look at: of a toy that was compiled for two ranks, and of a calculator."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import numpy as np
from ase import Atoms
from springs import SpringCalculator
from structures import crystal
from toys import Gnn, Graph, random_graph

import distcompile
from distcompile import DistributedModel, LocalWorld
from distcompile.app.explaining import page_of
from distcompile.calculators.calculator import calculate
from distcompile.runtime.division.plan import Division
from distcompile.runtime.execution.executor import Executor
from distcompile.show.html.records import Page

RANKS = 2


@functools.cache
def toy() -> tuple[DistributedModel, Graph, Executor, dict[str, int], Division]:
    """A toy on two ranks, after it evaluated a graph: with that, its program, rows and their division."""
    model = distcompile.compile(Gnn().eval(), random_graph(14, 1), world=LocalWorld(RANKS), validate=False)
    graph = random_graph(60, 2)
    model(graph)
    executor, prepared = model.prepared(graph)
    return model, graph, executor, prepared.sizes, executor.layout(prepared).division


@functools.cache
def calculated() -> tuple[Any, Atoms]:
    """A calculator on two ranks, and the structure that it evaluated; its ranks make their rows themselves."""
    calculator = distcompile.distribute(SpringCalculator(), LocalWorld(RANKS), lowering="eager")
    atoms = crystal()
    calculate(calculator, atoms)
    return calculator, atoms


@functools.cache
def springs_page() -> Page:
    """The content of the page about it."""
    calculator, atoms = calculated()
    return page_of(atoms, calculator, "springs")


def data_of(html: str) -> Any:
    """The data in a page."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def array(values: Any) -> np.ndarray:
    """Numbers of a figure, as plotly writes them: a list, or bytes by their name."""
    if isinstance(values, dict):
        import base64

        return np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
    return np.array(values)
