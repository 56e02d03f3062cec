"""The work of ``distcompile plan``: the whole graph, its division among each number of ranks, and the predicted steps.

The model is compiled on a few atoms of the structure and runs on a few more; at scale, only what its calculator does
before it calls the model is done, and the division of the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..calculators.calculator import Calculate, calculate, distribute, received
from ..ir.tree import Leaf, flatten
from ..layout.structure import structure_of
from ..predict.account import Work, work
from ..predict.calibrate import SIZES, this_machine, timed
from ..predict.planning import DEVICES, Device, Host, Step, Traffic, step, traffic, weak
from ..predict.rank_counts import RankCounts, rank_counts
from ..runtime.execution.agreement import fingerprint
from ..runtime.execution.executor import Executor
from ..runtime.execution.preparing import Prepared
from ..runtime.world import LocalWorld
from .device_files import read_device, write_device
from .forecast_shares import counted
from .sanity import species_named

EXAMPLE = 48
"""Atoms on which the model is compiled, at most."""

MARGIN = 3.0
"""A between these atoms and their images: none are too close."""


@dataclasses.dataclass(frozen=True)
class Column:
    """The predictions for one number of ranks."""

    ranks: RankCounts
    traffic: Traffic
    host: Host
    steps: tuple[Step, ...]
    """The predicted steps, by device."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The predictions for all numbers of ranks, one rank first, on all devices."""

    formula: str
    atoms: int
    graph_bytes: int
    """Bytes that are whole on every rank: the graph object, the results of its integers, and the parameters."""
    devices: tuple[Device, ...]
    columns: tuple[Column, ...]
    weak: tuple[tuple[Step, ...], ...]
    """By device: a step on each number of ranks, where each rank has the rows that it has on the most ranks."""


def forecast(atoms: Any, calculator: Any, ranks: list[int], devices: list[str], measured: Path | None) -> Forecast:
    """Predict steps of a structure.

    Args:
        atoms: ASE atoms.
        calculator: the package's ASE calculator; its models are compiled, in place.
        ranks: numbers of ranks.
        devices: names in `DEVICES`, or ``cpu`` for this machine.
        measured: a file of `write_device` to take instead; written, for this machine, where there is none.

    Raises:
        ValueError: the file holds no device.
        TypeError: the calculator holds no model.
        SimulationError: the model does not know a species.
    """
    known = {**DEVICES}
    if measured is not None and measured.exists():
        known["cpu"] = read_device(measured)
    here = "cpu" in devices or measured is not None
    # What is learned of graph objects is learned in the first evaluation if results are not to change after it.
    loaded = distribute(calculator, LocalWorld(1), lowering="kernels" if here else "eager")
    example = few(atoms)
    with species_named(atoms, loaded, example):
        calculate(loaded, example)
        found = _by_shares(atoms, loaded, ranks, devices, known, measured)
        if found is not None:
            return found
        (model, graph), graph_seconds = timed(lambda: received(loaded, atoms))
    (executor, prepared), checks = timed(lambda: model.prepared(*graph))
    leaves, _ = flatten(graph)
    _, digest = timed(lambda: fingerprint(leaves))
    needed = work(executor.program)
    chosen = _devices(atoms, loaded, needed, devices, known, measured)
    found_for = []
    for parts in sorted({1, *ranks}):
        held, seconds = _divided(executor, prepared, parts)
        found_for.append((held, Host(graph_seconds, checks + digest, seconds if parts > 1 else 0.0)))
    return _assembled(atoms, _bytes(leaves, prepared.values, executor), needed, chosen, found_for)


def _assembled(
    atoms: Any, graph_bytes: int, needed: Work, devices: tuple[Device, ...], found: list[tuple[RankCounts, Host]]
) -> Forecast:
    """The forecast from what ranks hold, and seconds of graph objects, for each number of ranks."""
    columns = [
        Column(held, traffic(needed, held), host, tuple(step(d, needed, held, host) for d in devices))
        for held, host in found
    ]
    last = columns[-1]
    numbers = [c.ranks.parts for c in columns]
    return Forecast(
        atoms.get_chemical_formula(empirical=True),
        len(atoms),
        graph_bytes,
        devices,
        tuple(columns),
        tuple(tuple(weak(d, needed, last.ranks, last.host, numbers)) for d in devices),
    )


def _by_shares(
    atoms: Any, calculator: Any, ranks: list[int], devices: list[str], known: dict[str, Device], measured: Path | None
) -> Forecast | None:
    """The forecast if ranks make their rows of the graph object themselves; else None."""
    last = calculator.calculate.graphs.last if isinstance(calculator.calculate, Calculate) else None
    own = last[0].own_rows() if last is not None else None
    if last is None or own is None:
        return None
    structure = structure_of(atoms)
    needed = work(own.executor.program, {recipe.source for recipe in last[0].learned.results.values()})
    chosen = _devices(atoms, calculator, needed, devices, known, measured)
    found = [counted(last[0], own, structure, parts) for parts in sorted({1, *ranks})]
    graph_bytes = found[0][2] + _bytes([], (), own.executor)
    return _assembled(atoms, graph_bytes, needed, chosen, [(held, host) for held, host, _ in found])


def _devices(
    atoms: Any, calculator: Any, needed: Work, names: list[str], known: dict[str, Device], measured: Path | None
) -> tuple[Device, ...]:
    """The devices to predict for; this machine is measured if it is one of them."""
    if "cpu" not in known and (measured is not None or "cpu" in names):
        smaller = (received(calculator, few(atoms, n)) for n in sorted({min(n, len(atoms)) for n in SIZES}))
        known["cpu"] = this_machine((m.prepared(*given) for m, given in smaller), needed)
        if measured is not None:
            write_device(measured, known["cpu"])
    return tuple(known[name] for name in (["cpu"] if measured is not None else names))


def few(atoms: Any, number: int = EXAMPLE) -> Any:
    """A few of a structure's atoms, with the distances that they have in it, as a structure of its own."""
    if len(atoms) <= number:
        return atoms
    apart = atoms.get_distances(0, range(len(atoms)), mic=True, vector=True)
    nearest = (apart**2).sum(1).argsort(kind="stable")[:number]
    found = atoms[nearest]
    found.positions = apart[nearest] - apart[nearest].min(0)
    found.set_cell(found.positions.max(0) + MARGIN)
    return found


def _divided(executor: Executor, prepared: Prepared, parts: int) -> tuple[RankCounts, float]:
    """The counts of each rank, and the seconds in which a rank finds that atoms may stay and plans its messages."""
    first = executor.divide(prepared, parts)

    def again() -> None:
        executor.laid_out(prepared, executor.divide(prepared, parts, first.partition)).division.for_rank(0)

    _, seconds = timed(again)
    return rank_counts(executor.program, prepared.sizes, first), seconds


def _bytes(leaves: list[Leaf], values: Sequence[Any], executor: Executor) -> int:
    tensors = [leaf.tensor for leaf in (*leaves, *executor.constants())]
    tensors += [v for v in values if isinstance(v, torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
