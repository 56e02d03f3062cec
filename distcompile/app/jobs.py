"""The work of ``distcompile run`` on every rank: read, load, distribute, then evaluate, relax or run a trajectory."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import typer

from ..calculators.calculator import calculate, described, distribute, explanation, load_calculator, statistics
from ..errors import DistcompileError, OutOfMemory, RankError, SimulationError, StructureError, in_one_line
from ..files import replacing
from ..passes import Lowering
from ..runtime.world import is_first
from ..show.html.records import Page
from ..show.progress import stepping
from .checkpoint import last, resume
from .dynamics import Ensemble, Md, Output, Relaxation, relax, run_md
from .files import consistent, labelled, unwritable
from .launch import is_collective, restarts, say, stop, stop_together
from .reading import missing, read_structure
from .records import grows
from .report import differences, record_of, report_check, report_end, report_results
from .sanity import Guard, unknown_species
from .speech import Speak, speaking

T = TypeVar("T")


class Task(StrEnum):
    """The things that can be done with a structure."""

    energy = "energy"
    relax = "relax"
    md = "md"


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of ``distcompile run``."""

    structure: Path
    calculator: str
    task: Task
    repeat: tuple[int, int, int]
    check: bool
    output: Path | None
    relaxation: Relaxation
    md: Md
    files: Output
    resume: bool
    lowering: Lowering = "auto"
    memory: int | None = None
    """Bytes that a rank may use."""
    radial_error: float | None = None
    as_json: bool = False
    """True to print one JSON object, and nothing else."""
    quiet: bool = False
    """True to print results alone."""


def problem_of(job: Job, pressed: bool, max_restarts: int) -> str:
    """The fault in the options of a job, as far as it is known before the start; empty if there is none.

    Args:
        job: the job.
        pressed: True if a pressure was given.
        max_restarts: the number of times that ranks are started again.
    """
    md = job.task is Task.md
    if not_there := missing(job.structure):
        return not_there
    if job.check and job.task is not Task.energy:
        return "--check compares one evaluation: use it with --task energy."
    if not md and (job.md.checkpoint is not None or job.resume):
        return "Checkpoints are of trajectories: use --checkpoint and --resume with --task md."
    if (job.resume or max_restarts) and job.md.checkpoint is None:
        return "--resume and --max-restarts go on from a checkpoint: say which with --checkpoint."
    if job.task is Task.energy and (job.files.trajectory is not None or job.files.log is not None):
        return "One evaluation has no --trajectory and no --log: use --output, or --task relax or md."
    if pressed and not ((md and job.md.ensemble is Ensemble.npt) or (job.task is Task.relax and job.relaxation.cell)):
        return "--pressure acts on the cell: use it with --task md --ensemble npt or --task relax --relax-cell."
    if md and job.md.temperature == 0 and job.md.ensemble is not Ensemble.nve:
        return f"A thermostat cannot hold 0 K: use --temperature above 0 with --ensemble {job.md.ensemble}."
    if job.files.trajectory is not None and not grows(job.files.trajectory):
        return f"ASE cannot add frames to a file like {job.files.trajectory.name!r}: use .extxyz or .traj."
    return _files_problem(job)


def _files_problem(job: Job) -> str:
    """The problem of a file of a job that cannot be written, or would be lost; empty if there is none."""
    checkpoint, trajectory = job.md.checkpoint, job.files.trajectory
    if job.task is Task.md and checkpoint is not None and checkpoint.exists() and not job.resume:
        return f"There is a checkpoint {checkpoint} already: go on from it with --resume, or delete it."
    # A job that was started again before its first checkpoint writes its files anew.
    if trajectory is not None and trajectory.exists() and not job.resume and not restarts():
        return f"There is a trajectory {trajectory} already: take another name, or delete it."
    grow = [path.resolve() for path in (trajectory, job.files.log, checkpoint) if path is not None]
    whole = [path.resolve() for path in (job.output, job.structure) if path is not None]
    if len(set(grow)) < len(grow) or set(grow) & set(whole):
        return "Two of the files of this run are the same file: give each a name of its own."
    for path in (job.output, trajectory, job.files.log, checkpoint):
        if path is not None and (problem := unwritable(path, replaced=path is not job.files.log)):
            return problem
    return _format_problem(job.output) if job.output is not None else ""


def perform(job: Job) -> None:
    """Do a job, on every rank. It ends the process with a message if the job cannot be done."""
    with speaking(job.as_json, job.quiet) as speak:
        _perform(job, speak)


def _perform(job: Job, speak: Speak) -> None:
    first, problem, note = is_first(), "", ""
    calculator: Any = None
    stock: tuple[dict[str, Any], float] | None = None
    try:
        atoms, note = read_structure(job.structure, job.repeat)
        calculator = load_calculator(job.calculator)
    except (StructureError, ValueError) as error:
        problem = str(error)
    if job.check and first and not problem:
        try:
            stock = _evaluate(calculator, atoms)
        except Exception as error:  # calculators raise whatever their tables raise
            problem = (
                f"The stock calculator fails on this structure: {in_one_line(error)}. Leave out --check to run without."
            )
    stop_together(problem)
    if note:
        print(note, flush=True)
    with _explained(job.md.checkpoint):
        try:
            distribute(calculator, memory=job.memory, lowering=job.lowering, radial_error=job.radial_error)
        except TypeError as error:  # no model inside
            stop(str(error))
        if job.resume and job.md.checkpoint is not None:  # before anything is compiled
            resume(job.md.checkpoint, atoms.copy(), job.md.identity(job.calculator))
        atoms.calc = calculator
        Guard(atoms).check_distances(0)
        first_time = _first_evaluation(atoms)
        if job.task is Task.energy:
            results, seconds = _evaluate(calculator, atoms)
            rows = statistics(calculator)
            if first:
                how = described(calculator)
                record = {**record_of(atoms, results, rows, how), "seconds": seconds, "first_seconds": first_time}
                speak(record, lambda: report_results(atoms, results, rows, how, first_time, seconds))
            if first and stock is not None:
                theirs, stock_seconds = stock
                compared = {"differences": differences(results, theirs), "stock_seconds": stock_seconds}
                speak(compared, lambda: report_check(results, theirs, stock_seconds, seconds))
        else:
            _move(job, atoms, speak)
            results = consistent(calculator.results)
        if first and job.output is not None:
            _write(job.output, atoms, results)


def perform_plan(
    structure: Path,
    calculator: str,
    ranks: str,
    device: str,
    measured: Path | None,
    repeat: tuple[int, int, int],
    plot: Path | None,
    html: Path | None,
    as_json: bool = False,
) -> None:
    """Predict steps on many ranks and print them. It ends the process with a message if that cannot be done."""
    from ..predict.planning import DEVICES
    from .explaining import page_of_plan
    from .forecast import forecast
    from .report_plan import plan_record, plot_plan, report_plan

    devices = device.split(",")
    unknown = set(devices) - {*DEVICES, "cpu"}
    if unknown:
        stop(f"--device takes {', '.join(DEVICES)} and cpu, not {unknown.pop()!r}; others with --measured.")
    try:
        numbers = [int(n) for n in ranks.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        stop(f"--ranks takes numbers of ranks, not {ranks!r}.")
    for path in (measured, plot):
        if path is not None and not (path is measured and path.is_file()) and (problem := unwritable(path)):
            stop(problem)
    if html is not None and (problem := _no_page(html)):
        stop(problem)
    with _explained(None), speaking(as_json, False) as speak:
        _, found = _looked_at(
            structure, repeat, lambda atoms: forecast(atoms, load_calculator(calculator), numbers, devices, measured)
        )
        speak(plan_record(found), lambda: report_plan(found))
        if plot is not None:
            try:
                with replacing(plot) as unfinished:
                    plot_plan(found, unfinished)
            except (ImportError, ValueError) as error:  # matplotlib is missing, or does not know the format
                stop(f"{plot} cannot be drawn: {error}.")
        if html is not None:
            _write_page(html, page_of_plan(found, calculator))


def perform_explain(
    structure: Path,
    calculator: str,
    ranks: int,
    repeat: tuple[int, int, int],
    detail: bool,
    html: Path | None,
    lowering: Lowering,
    as_json: bool = False,
) -> None:
    """Evaluate on virtual ranks, and say what was compiled. It ends the process with a message if that fails."""
    from .explaining import explained, page_of

    if html is not None and (problem := _no_page(html)):
        stop(problem)
    with _explained(None), speaking(as_json, False) as speak:
        atoms, loaded = _looked_at(structure, repeat, lambda atoms: explained(atoms, calculator, ranks, lowering))
        content = page_of(atoms, loaded, calculator) if html is not None or as_json else None
        record = dataclasses.asdict(content) if content is not None and as_json else {}
        speak(record, lambda: print(explanation(loaded, detail)))
        if html is not None and content is not None:
            _write_page(html, content)


def _looked_at(structure: Path, repeat: tuple[int, int, int], look: Callable[[Any], T]) -> tuple[Any, T]:
    """A structure of a file, and what `look` finds of it. What it cannot take ends the process with a message."""
    atoms, note = read_structure(structure, repeat)
    if note:
        print(note, flush=True)
    try:
        return atoms, look(atoms)
    except (TypeError, ValueError) as error:
        stop(str(error))


def _no_page(html: Path) -> str:
    """The reason that a page cannot be written; empty if it can."""
    from ..show.html.page import missing

    return missing() or unwritable(html)


def _write_page(html: Path, content: Page) -> None:
    """Write a page in place of an old file."""
    from ..show.html.page import page

    with replacing(html) as unfinished:
        unfinished.write_text(page(content), encoding="utf-8")
    print(f"Page written to {html}.")


@contextlib.contextmanager
def _explained(checkpoint: Path | None) -> Iterator[None]:
    """Turn an error into a message. For a trajectory, it names the last checkpoint."""
    try:
        yield
    except OutOfMemory as error:  # only this rank knows of it, and has to say it
        say(str(error), True)
        raise typer.Exit(1) from error
    except SimulationError as error:
        stop(f"{error} {last(checkpoint)}".strip())
    except DistcompileError as error:
        stop(str(error))
    except OSError as error:
        stop(f"A file cannot be read or written: {error}. {last(checkpoint)}".strip())
    except Exception as error:
        if isinstance(error, typer.Exit) or is_collective(error):  # already said, or of another rank
            raise
        stop(f"{in_one_line(error)}. {last(checkpoint)}".strip())


def _first_evaluation(atoms: Any) -> float:
    """Compile and evaluate; return the seconds that it took. An error names a species that the model does not know."""
    start = time.perf_counter()
    try:
        _evaluate(atoms.calc, atoms)
    except (OutOfMemory, RankError):
        raise
    except Exception as error:  # calculators raise whatever their tables raise
        if is_collective(error):
            raise
        unknown = unknown_species(atoms, atoms.calc)
        if not unknown and isinstance(error, DistcompileError):
            raise
        raise SimulationError(
            unknown or f"Step 0: the calculator fails on this structure: {in_one_line(error)}."
        ) from error
    return time.perf_counter() - start


def _move(job: Job, atoms: Any, speak: Speak) -> None:
    """Relax, or run a trajectory."""
    record: dict[str, Any]
    if job.task is Task.relax:
        with stepping("Relaxation", job.relaxation.steps, len(atoms)) as done:
            converged, steps = relax(atoms, job.relaxation, job.files, done)
        title = f"relaxed in {steps} steps" if converged else f"not relaxed after {steps} steps"
        record = {"relaxed": converged, "steps": steps}
    else:
        if job.resume:
            print(f"Resuming. {last(job.md.checkpoint)}", flush=True)
        with stepping(job.md.ensemble.upper(), job.md.steps, len(atoms), job.md.timestep) as done:
            start = run_md(atoms, job.md, job.files, done, calculator=job.calculator, resume=job.resume)
        title = f"steps {start} to {max(start, job.md.steps)}, {job.md.ensemble.upper()}"
        record = {"ensemble": job.md.ensemble.value, "first_step": start, "steps": max(start, job.md.steps)}
    atoms.get_potential_energy()  # on every rank, so that the report of the first finds it
    atoms.get_forces()
    rows = statistics(atoms.calc)
    if is_first():
        how = described(atoms.calc)
        record |= record_of(atoms, atoms.calc.results, rows, how)
        speak(record, lambda: report_end(atoms, title, rows, how))


def _evaluate(calculator: Any, atoms: Any) -> tuple[dict[str, Any], float]:
    """All results that the calculator has for a structure, and the seconds they took."""
    start = time.perf_counter()
    calculate(calculator, atoms)
    seconds = time.perf_counter() - start
    return consistent(calculator.results), seconds


def _write(output: Path, atoms: Any, results: dict[str, Any]) -> None:
    """Write a structure with its results, in place of an old file."""
    from ase.io import write
    from ase.io.formats import filetype

    try:
        with replacing(output) as unfinished:
            write(unfinished, labelled(atoms, results), format=filetype(str(output), read=False))
    except Exception as error:  # writers of ASE raise whatever their format makes them raise
        stop(
            f"Results cannot be written to {output}: {in_one_line(error)}. What was there still is. "
            "Use .extxyz or .traj."
        )
    print(f"Results written to {output}.")


def _format_problem(output: Path) -> str:
    """The reason that ASE cannot write a file of that name; empty if it can."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        known = ioformats[filetype(str(output), read=False)]
    except (UnknownFileTypeError, KeyError):
        return f"Results cannot be written to {output}: ASE knows no format of that name. Use .extxyz or .traj."
    if not known.can_write:
        return f"Results cannot be written to {output}: ASE cannot write {known.name}. Use .extxyz or .traj."
    return ""
