"""The work of ``distcompile explain``: an evaluation on virtual ranks; and the pages of it, and of a plan."""

from __future__ import annotations

from typing import Any

import torch

from .. import __version__
from ..calculators.calculator import Evaluated, calculate, distribute, evaluated, load_calculator
from ..ir import Tiled
from ..ir.text import DTYPES
from ..passes import Lowering
from ..runtime.world import LocalWorld
from ..show.html import records
from ..show.html.program import program
from ..show.html.ranks import atoms as atoms_of
from ..show.html.ranks import ranks as ranks_of
from ..show.html.regions import regions, timing
from .forecast import Forecast
from .sanity import species_named

_GRAPH = frozenset({"whole graph", "own rows"})
"""The parts of a step that are work on the graph object."""


def explained(atoms: Any, calculator: str, ranks: int, lowering: Lowering) -> Any:
    """A calculator, after it evaluated a structure on virtual ranks.

    Raises:
        ValueError: there is no such calculator.
        TypeError: it holds no model.
        SimulationError: the model does not know a species.
    """
    loaded = distribute(load_calculator(calculator), LocalWorld(ranks), lowering=lowering)
    with species_named(atoms, loaded):
        calculate(loaded, atoms)
    return loaded


def page_of(atoms: Any, calculator: Any, name: str) -> records.Page:
    """The content of a page about a calculator's last evaluation, which was of these atoms; it is evaluated once more.

    Raises:
        NoIndexSpaceError: there was nothing to divide in it.
    """
    last = evaluated(calculator)
    assert last is not None
    running: Tiled | None = None
    while running is not last.executor.running:  # kernels may have become ready meanwhile
        running = last.executor.running
        with timing(last.executor) as seconds:
            calculate(calculator, atoms)
    sizes = last.prepared.sizes
    held = ranks_of(running, sizes, last.division)
    wrapped = atoms.get_positions(wrap=True) if atoms.cell.rank == 3 else atoms.get_positions()
    space = running.spaces[0].name
    shown = atoms_of(space, last.division, wrapped, list(atoms.symbols), atoms.cell.array)
    received = held.sent.sum(0)
    return records.Page(
        f"{atoms.get_chemical_formula(empirical=True)}, {name}, {_counted(last.division.parts, 'rank')}",
        (
            ("atoms", f"{len(atoms)}"),
            *((f"rows of {s}", f"{n.sum()}") for s, n in list(held.owned.items())[1:]),
            ("operators on every rank", f"{sum(n.op == 'call_function' for n in running.graph.graph.nodes)}"),
            ("halo atoms of the fullest rank", f"{held.halo[space].max()}"),
            ("rows that cross, for the fullest rank", f"{received.max() / 1e6:.3g} MB"),
            ("memory of the fullest rank, predicted", f"{held.memory.max() / 1e6:.3g} MB"),
            ("made by", f"distcompile {__version__}, torch {torch.__version__}"),
        ),
        program=program(last.model.history(last.executor)),
        ranks=held,
        atoms=shown,
        no_atoms=f"There is no picture of the atoms: the graph object has {sizes[space]} rows of {space}, and the "
        f"structure {len(atoms)} atoms.",
        regions=regions(last.executor, sizes, last.division, seconds),
        layout=_layout(last),
    )


def _layout(last: Evaluated) -> records.Layout:
    said = last.model.made_of.partition("\n")[0] or "Graph objects are made by the package, so far."
    if last.layout is None:
        return records.Layout(said)
    within = {"atoms": "of the structure", "edges": f"within {last.layout.cutoff:g} A"}
    kinds = [(space, within.get(rows.kind, str(rows))) for space, rows in last.layout.kinds.items()]
    spaces = {rows: space for space, rows in last.layout.kinds.items()}
    tensors = []
    for leaf in last.layout.recipes:
        dims = [str(n) for n in leaf.rest]
        if leaf.rows is not None and leaf.dim >= 0:
            dims.insert(leaf.dim, spaces[leaf.rows])
        tensors.append((leaf.path, f"{DTYPES[leaf.dtype]}[{', '.join(dims)}]", leaf.made))
    return records.Layout(said, tuple(kinds), tuple(tensors))


def page_of_plan(found: Forecast, name: str) -> records.Page:
    """The content of a page about predicted steps."""
    numbers = tuple(c.ranks.parts for c in found.columns)
    devices = []
    for i, device in enumerate(found.devices):
        strong, weak = [c.steps[i] for c in found.columns], found.weak[i]
        devices.append(records.Scaling(device.name, device.basis, numbers, _parts(strong), _parts(weak), _GRAPH))
    names = [n for n in found.columns[0].ranks.spaces if n not in found.columns[0].ranks.some]
    held, last = [c.ranks for c in found.columns], found.columns[-1]
    return records.Page(
        f"{found.formula}, {name}, {_counted(numbers[-1], 'rank')}",
        (
            ("atoms", f"{found.atoms}"),
            ("graph and parameters, on every rank", f"{found.graph_bytes / 1e6:.1f} MB"),
            ("memory of the fullest of most ranks", f"{held[-1].memory.max() / 1e6:.3g} MB"),
            *((f"a step on {d.name}", f"{last.steps[i].total:.3g} s") for i, d in enumerate(found.devices)),
            ("made by", f"distcompile {__version__}, torch {torch.__version__}"),
        ),
        scaling=tuple(devices),
        growth=records.Growth(
            numbers,
            {n: tuple(int(h.spaces[n].owned.max()) for h in held) for n in names},
            {n: tuple(int(h.spaces[n].halo.max()) for h in held) for n in names},
            tuple(int(c.traffic.halo.max()) for c in found.columns),
            tuple(int(c.traffic.results.max()) for c in found.columns),
            tuple(int(h.memory.max()) for h in held),
        ),
    )  # fmt: skip


def _parts(steps: Any) -> dict[str, tuple[float, ...]]:
    """Seconds of the parts of steps, named as `report_plan` names them."""
    return {
        "operators": tuple(s.local for s in steps),
        "halo": tuple(s.halo for s in steps),
        "sums, results": tuple(s.whole for s in steps),
        "whole graph": tuple(s.host for s in steps),
        "own rows": tuple(s.own_rows for s in steps),
    }


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
