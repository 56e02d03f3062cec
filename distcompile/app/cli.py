"""The command line: ``distcompile run STRUCTURE --calculator NAME --ranks N``, ``plan``, ``explain`` and others."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..passes import Lowering
from .dynamics import Ensemble, Md, Optimizer, Output, Relaxation
from .jobs import Job, Task, perform, problem_of
from .launch import in_job, joined, launch, restarts, stop
from .speech import speaking

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

RELAX, MD, FILES = "Relaxation", "Molecular dynamics", "Files and faults"
SPEED = "Speed and memory"


class How(StrEnum):
    """Ways to run the model, see `distcompile.compile`."""

    auto = "auto"
    eager = "eager"
    kernels = "kernels"
    inductor = "inductor"


@app.callback()
def _app() -> None:
    """Run machine-learned interatomic potentials on any number of ranks."""


@app.command()
def run(
    structure: Annotated[Path, typer.Argument(help="Any structure file that ASE reads.")],
    calculator: Annotated[str, typer.Option(help="chgnet, sevennet, ... or package.module:factory, file.py:factory")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes to start on this machine.")] = 1,
    task: Annotated[Task, typer.Option(help="What to do with the structure.")] = Task.energy,
    repeat: Annotated[tuple[int, int, int], typer.Option(min=1, help="Repeat the cell along its axes.")] = (1, 1, 1),
    check: Annotated[bool, typer.Option("--check", help="Also run the stock model and print the differences.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the structure with its results.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; 1000 of dynamics, at most 500 to relax.")] = None,
    pressure: Annotated[float | None, typer.Option(help="GPa; with --ensemble npt or --relax-cell.")] = None,
    optimizer: Annotated[Optimizer, typer.Option(rich_help_panel=RELAX)] = Optimizer.fire,
    fmax: Annotated[float, typer.Option(min=0, help="Largest force left, eV/A.", rich_help_panel=RELAX)] = 0.05,
    relax_cell: Annotated[
        bool, typer.Option("--relax-cell", help="Relax the cell too.", rich_help_panel=RELAX)
    ] = False,
    ensemble: Annotated[Ensemble, typer.Option(help="What is held constant.", rich_help_panel=MD)] = Ensemble.nve,
    temperature: Annotated[
        float, typer.Option(min=0, help="K: thermostat, and velocities if the file has none.", rich_help_panel=MD)
    ] = 300.0,
    timestep: Annotated[float, typer.Option(min=0.001, help="fs", rich_help_panel=MD)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the velocities.", rich_help_panel=MD)] = 0,
    trajectory: Annotated[Path | None, typer.Option(help="Frames: .traj, .extxyz, ...", rich_help_panel=FILES)] = None,
    log: Annotated[Path | None, typer.Option(help="Write energies, temperature, ...", rich_help_panel=FILES)] = None,
    interval: Annotated[int, typer.Option(min=1, help="Steps between frames, lines.", rich_help_panel=FILES)] = 10,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Write where the trajectory is (.npz).", rich_help_panel=FILES)
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps.", rich_help_panel=FILES)] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint.", rich_help_panel=FILES)] = False,
    lowering: Annotated[
        How | None,
        typer.Option(help="How the model runs: auto; with --checkpoint kernels.", rich_help_panel=SPEED),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.001, help="GB that a rank may use.", rich_help_panel=SPEED)
    ] = None,
    radial_error: Annotated[
        float | None,
        typer.Option(help="Allow tables of radial functions with this relative error: 1e-6.", rich_help_panel=SPEED),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start all ranks again if one fails, from --checkpoint.", rich_help_panel=FILES)
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results alone.")] = False,
) -> None:
    """Evaluate, relax or move a structure."""
    if restarts() and checkpoint is not None and checkpoint.exists():
        resume = True  # torchrun started this job again
    relaxation = Relaxation(optimizer, fmax, steps or 500, relax_cell, pressure or 0.0)
    md = Md(ensemble, steps or 1000, timestep, temperature, pressure or 0.0, seed, checkpoint, checkpoint_every)
    files = Output(trajectory, log, interval)
    # Where code takes over from operators differs from run to run: a trajectory that is resumed must not depend on it.
    how: Lowering = "kernels" if lowering is None and checkpoint is not None else (lowering or How.auto).value
    budget = None if memory is None else int(memory * 1e9)
    job = Job(
        *(structure, calculator, task, repeat, check, output, relaxation, md, files, resume),
        *(how, budget, radial_error, as_json, quiet),
    )
    problem = problem_of(job, pressure is not None, max_restarts)
    if problem:
        stop(problem)
    if in_job():
        with joined(checkpoint):
            perform(job)
    elif ranks == 1 and max_restarts == 0:
        perform(job)
    else:
        raise typer.Exit(launch(ranks, max_restarts, checkpoint))


class _SeveralRanks(TyperCommand):
    """Takes ``--ranks 8 64 512`` for ``--ranks 8,64,512``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for word in args:
            if word.isdigit() and joined[-2:-1] == ["--ranks"]:
                joined[-1] += f",{word}"
            else:
                joined.append(word)
        return super().parse_args(ctx, joined)


@app.command(cls=_SeveralRanks)
def plan(
    structure: Annotated[Path, typer.Argument(help="Any structure file that ASE reads.")],
    calculator: Annotated[str, typer.Option(help="As for run.")],
    ranks: Annotated[str, typer.Option(help="Numbers of ranks.", metavar="N N ...")],
    device: Annotated[
        str, typer.Option(help="a100, h100 (published figures), cpu (this machine, measured); by commas.")
    ] = "cpu",
    measured: Annotated[
        Path | None,
        typer.Option(help="Figures of a machine; if there is no such file, this machine's are measured and kept."),
    ] = None,
    repeat: Annotated[tuple[int, int, int], typer.Option(min=1, help="Repeat the cell along its axes.")] = (1, 1, 1),
    plot: Annotated[Path | None, typer.Option(help="Draw strong and weak scaling (.png).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict rows, traffic, memory and time of a step on many ranks, without running the model on the structure."""
    from .jobs import perform_plan

    perform_plan(structure, calculator, ranks, device, measured, repeat, plot, html, as_json)


@app.command()
def explain(
    structure: Annotated[Path, typer.Argument(help="Any structure file that ASE reads.")],
    calculator: Annotated[str, typer.Option(help="As for run.")],
    ranks: Annotated[int, typer.Option(min=1, help="Virtual ranks, all in this process.")] = 1,
    repeat: Annotated[tuple[int, int, int], typer.Option(min=1, help="Repeat the cell along its axes.")] = (1, 1, 1),
    detail: Annotated[bool, typer.Option("--detail", help="Print every operator, too.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page for a browser (.html).")] = None,
    lowering: Annotated[How, typer.Option(help="How the model runs meanwhile.")] = How.eager,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what was found in a model, what crosses between ranks and why; or show it, with the atoms of each rank."""
    from .jobs import perform_explain

    perform_explain(structure, calculator, ranks, repeat, detail, html, lowering.value, as_json)


@app.command()
def check(
    factory: Annotated[str, typer.Argument(help="package.module:function or file.py:function")],
    ranks: Annotated[str, typer.Option(help="Numbers of virtual ranks, separated by commas.")] = "1,2,3",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold a model of yours, compiled for N ranks, against itself.

    FACTORY is a function without arguments that returns (model, graph), (model, graph, other_graph) or
    (model, graph, other_graph, model_kwargs); the other graph has other sizes.
    """
    from ..calculators.load import load
    from ..errors import DistcompileError, in_one_line
    from ..testing import check_model

    try:
        numbers = tuple(int(n) for n in ranks.split(","))
    except ValueError:
        stop(f"--ranks takes numbers separated by commas, not {ranks!r}.")
    try:
        make = load(factory)
    except ValueError as error:
        stop(str(error))
    try:
        made = make()
        if not isinstance(made, tuple) or not 2 <= len(made) <= 4:
            stop(f"{factory} returns {type(made).__name__}; it has to return a model and a graph: see --help.")
        model, graph, other, kwargs = (*made, None, None)[:4]
        with speaking(as_json, False) as speak:
            report = check_model(model, graph, other, numbers, model_kwargs=kwargs)
            speak({**dataclasses.asdict(report), "ok": report.ok, "worst": report.worst}, lambda: print(report))
    except DistcompileError as error:
        stop(str(error))
    except typer.Exit:
        raise
    except Exception as error:  # whatever goes wrong in somebody's model
        stop(f"{factory}: {in_one_line(error)}.")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report versions, devices, backends, the compiler, which packages of models work, and what is set up badly."""
    from .doctor import machine, mistakes, models
    from .report import report_doctor

    with speaking(as_json, False) as speak:
        found = {"machine": machine(), "models": models(), "mistakes": mistakes()}
        speak({name: dict(rows) for name, rows in found.items()}, lambda: report_doctor(*found.values()))


def main() -> None:
    """Entry point of the ``distcompile`` command."""
    app()


if __name__ == "__main__":
    main()
