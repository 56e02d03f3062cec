"""The memory and the time of each region of a program, as records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from torch import fx, nn

from ...predict.account import held_bytes
from ...predict.by_rank import needs, rows_of_ranks
from ...runtime.division.plan import Division
from ...runtime.execution.executor import Executor
from ...runtime.execution.in_step import InStep
from ...runtime.execution.tiles import Region as Body
from ...runtime.world import communicator
from ..explain import code_of
from .records import Region

Seconds = dict[str, dict[int, float]]
"""By region and rank."""


@contextmanager
def timing(executor: Executor) -> Iterator[Seconds]:
    """Seconds that each region takes in evaluations within, on each rank of this process."""
    found: Seconds = {}
    begun: dict[tuple[str, int], float] = {}
    handles = []

    def before(name: str) -> None:
        begun[name, communicator().rank] = time.perf_counter()

    def after(name: str) -> None:
        rank = communicator().rank
        by_rank = found.setdefault(name, {})
        by_rank[rank] = by_rank.get(rank, 0.0) + time.perf_counter() - begun[name, rank]

    try:
        for name, module in executor.steps.named_children():
            if isinstance(module, Body | InStep):
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
                handles.append(module.register_forward_hook(lambda *_, name=name: after(name)))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def regions(executor: Executor, sizes: dict[str, int], division: Division, seconds: Seconds) -> tuple[Region, ...]:
    """The regions of the program as it runs, in order, with the memory that the fullest rank holds meanwhile."""
    fullest = int(np.argmax(needs(executor.running, sizes, division)))
    rows, halos = rows_of_ranks(division)[fullest]
    held: dict[str, tuple[int, int]] = {}
    for step in held_bytes(executor.running, {**sizes, **rows}, halos):
        if step.step.op == "call_module":
            name = str(step.step.target)
            held[name] = max(held.get(name, (0, 0)), (step.tables, step.block), key=sum)
    return tuple(
        _region(name, executor.steps.get_submodule(name), *bytes_, seconds.get(name, {}), division.parts)
        for name, bytes_ in held.items()
    )


def _region(name: str, called: nn.Module, tables: int, block: int, seconds: Mapping[int, float], parts: int) -> Region:
    bodies = _bodies(called)
    spaces = dict.fromkeys(body.spec.space for body in bodies)
    return Region(
        name,
        ", ".join(spaces),
        sum(_operators(body.graph_module) for body in bodies),
        ", ".join(dict.fromkeys(code_of(body) for body in bodies)),
        tables,
        block,
        tuple(seconds.get(rank, 0.0) for rank in range(parts)),
    )


def _bodies(called: nn.Module) -> Sequence[Body]:
    if isinstance(called, InStep):
        return [member.region for member in called.members]
    assert isinstance(called, Body)
    return [called]


def _operators(module: fx.GraphModule) -> int:
    return sum(n.op == "call_function" for n in module.graph.nodes)
