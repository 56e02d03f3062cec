"""The tables and the picture of ``distcompile plan``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..predict.planning import Host
from ..show.tables import show
from .forecast import Forecast
from .forecast_shares import LOOKED_AT, STEPS


def report_plan(found: Forecast) -> None:
    """Print rows, traffic and memory of the fullest rank, steps on every device, and the assumptions."""
    console = Console(highlight=False)
    console.print(f"{found.formula}: {found.atoms} atoms, {found.graph_bytes / 1e6:.1f} MB of graph and parameters")
    names = [name for name in found.columns[0].ranks.spaces if name not in found.columns[0].ranks.some]
    rows = Table("ranks", "partition", "imbalance", *[f"{n} owned + halo" for n in names], title="Rows of a rank")
    moved = Table("ranks", "messages", "MB halo", "MB results", "MB memory", title="One evaluation, on a rank")
    for column in found.columns:
        held, sent = column.ranks, column.traffic
        counts = [f"{held.spaces[n].owned.max()} + {held.spaces[n].halo.max()}" for n in names]
        rows.add_row(str(held.parts), held.partition.method, f"{held.partition.imbalance:.3f}", *counts)
        megabytes = [f"{x.max() / 1e6:.2f}" for x in (sent.halo, sent.results, held.memory)]
        moved.add_row(str(held.parts), str(sent.messages.max()), *megabytes)
    show(rows, moved)
    for i, device in enumerate(found.devices):
        show(_steps(found, i, device.name))
    host = found.columns[-1].host
    console.print(
        "All figures are of the rank that has most. Assumed:\n"
        f"{_graphs(host, found.columns[-1].ranks.parts)};\n"
        "- atoms stay on their ranks from step to step;\n"
        "- kernels run on cpu, operators one by one on published devices;\n"
        "- ranks wait for each other at each exchange, and nothing is taken off for what runs while messages travel;\n"
        "- sums take 2 log2(ranks) messages;\n"
        "- memory is that of the program's tensors; the graph and the parameters come on top, on every rank;"
    )
    for device in found.devices:
        console.print(f"- {device.name}: {device.basis}.", soft_wrap=True)


def plan_record(found: Forecast) -> dict[str, Any]:
    """What the tables of a plan say, as numbers: rows, bytes and seconds of the rank that has most."""
    columns = []
    for column in found.columns:
        held, sent = column.ranks, column.traffic
        rows = {name: {"owned": counts.owned.max(), "halo": counts.halo.max()} for name, counts in held.spaces.items()}
        steps = {
            device.name: {**dataclasses.asdict(step), "total": step.total}
            for device, step in zip(found.devices, column.steps, strict=True)
        }
        columns.append(
            {
                "ranks": held.parts,
                "partition": held.partition.method,
                "imbalance": held.partition.imbalance,
                "rows": rows,
                "messages": sent.messages.max(),
                "halo_bytes": sent.halo.max(),
                "result_bytes": sent.results.max(),
                "memory_bytes": held.memory.max(),
                "seconds": steps,
            }
        )
    assumed = {device.name: device.basis for device in found.devices}
    return {
        "formula": found.formula, "atoms": found.atoms, "graph_bytes": found.graph_bytes, "plans": columns,
        "devices": assumed,
    }  # fmt: skip


def _graphs(host: Host, ranks: int) -> str:
    """Who makes graph objects, and how long that takes."""
    if host.own_rows:
        return (
            f"- ranks make their rows of the graph object themselves, in {host.own_rows:.3g} s on {ranks} ranks, "
            f"measured on this machine for {min(LOOKED_AT, ranks)} of them; neighbours are searched every {STEPS} "
            f"steps;\n- compared on every rank: positions, {host.checks:.3g} s"
        )
    return (
        f"- whole on every rank, measured on this machine: neighbours and graph {host.graph:.3g} s, checks "
        f"{host.checks:.3g} s, who sends what {host.division:.3g} s on {ranks} ranks"
    )


def _steps(found: Forecast, i: int, name: str) -> Table:
    """Seconds of a step on one device, and the efficiency of more ranks against one."""
    table = Table(
        *("ranks", "s/step", "whole graph", "own rows", "operators", "halo"),
        *("sums, results", "efficiency", "without graph"),
        title=f"A step on {name}, in seconds",
    )
    one = found.columns[0].steps[i]
    for column in found.columns:
        now, parts = column.steps[i], column.ranks.parts
        seconds = [f"{x:.3g}" for x in (now.total, now.host, now.own_rows, now.local, now.halo, now.whole)]
        pairs = ((one.total, now.total), (one.evaluation, now.evaluation))
        table.add_row(str(parts), *seconds, *(f"{alone / shared / parts:.0%}" for alone, shared in pairs))
    return table


def plot_plan(found: Forecast, path: Path) -> None:
    """Draw strong scaling (the same system on more ranks) and weak scaling (as many rows a rank).

    Each is drawn with and without the work that every rank does on the whole graph. The ideal line is the step without
    that work on one rank, divided by the number of ranks.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    strong, weak = figure.subplots(1, 2)
    ranks = [c.ranks.parts for c in found.columns]
    for i, device in enumerate(found.devices):
        steps = [c.steps[i] for c in found.columns]
        for axes, row in ((strong, steps), (weak, list(found.weak[i]))):
            (line,) = axes.plot(ranks, [s.total for s in row], "o-", label=device.name)
            axes.plot(ranks, [s.evaluation for s in row], "--", color=line.get_color(), label="without graph")
        strong.plot(ranks, [steps[0].evaluation / n for n in ranks], ":", color=line.get_color(), label="ideal")
    strong.set(
        xscale="log", yscale="log", xlabel="ranks", ylabel="s/step", title=f"{found.atoms} atoms (dotted: ideal)"
    )
    weak.set(
        xscale="log", yscale="log", xlabel="ranks", ylabel="s/step", title=f"{found.atoms // ranks[-1]} atoms a rank"
    )
    strong.legend()
    figure.savefig(path, dpi=150)
