"""The command line: ``distcompile run STRUCTURE --calculator NAME --ranks N``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _app() -> None:
    """Run machine-learned interatomic potentials on any number of ranks."""


@app.command()
def run(
    structure: Annotated[Path, typer.Argument(help="Any structure file that ASE reads.")],
    calculator: Annotated[str, typer.Option(help="chgnet, sevennet, ... or package.module:factory, file.py:factory")],
    ranks: Annotated[int, typer.Option(min=1, help="Processes to start on this machine.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Also run the stock model and print the differences.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the structure with its results.")] = None,
) -> None:
    """Evaluate energy, forces and stress of a structure."""
    if not structure.exists():
        _stop(f"There is no file {structure}.")
    if output is not None:
        _check_output(output)
    if _in_job():
        _worker(structure, calculator, check, output)
    elif ranks == 1:
        _evaluate(structure, calculator, check, output)
    else:
        raise typer.Exit(_launch(ranks))


@app.command()
def check(
    factory: Annotated[str, typer.Argument(help="package.module:function or file.py:function")],
    ranks: Annotated[str, typer.Option(help="Numbers of virtual ranks, separated by commas.")] = "1,2,3",
) -> None:
    """Hold a model of yours, compiled for N ranks, against itself.

    FACTORY is a function without arguments that returns (model, graph), (model, graph, other_graph) or
    (model, graph, other_graph, model_kwargs); the other graph has other sizes.
    """
    from .errors import DistcompileError
    from .load import load
    from .testing import check_model

    try:
        numbers = tuple(int(n) for n in ranks.split(","))
    except ValueError:
        _stop(f"--ranks takes numbers separated by commas, not {ranks!r}.")
    try:
        made = load(factory)()
        if not isinstance(made, tuple) or not 2 <= len(made) <= 4:
            raise ValueError(
                f"{factory} returns {type(made).__name__}; it has to return a model and a graph: see --help."
            )
        model, graph, other, kwargs = (*made, None, None)[:4]
        print(check_model(model, graph, other, numbers, model_kwargs=kwargs))
    except (DistcompileError, ValueError, TypeError) as error:
        _stop(str(error))


def main() -> None:
    """Entry point of the ``distcompile`` command."""
    app()


def _in_job() -> bool:
    """Whether torchrun (or SLURM with several tasks) started this process as one of several."""
    return "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _launch(ranks: int) -> int:
    """Start this same command under torchrun; return its exit code."""
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said what is wrong
    # -P: a folder called distcompile where the user stands must not hide the installed package.
    command = [sys.executable, "-P", "-m", "distcompile.cli", *sys.argv[1:]]
    options = ["--standalone", f"--nproc-per-node={ranks}", "--no-python", *command]
    try:
        torchrun(get_args_parser().parse_args(options))
    except ChildFailedError as failure:
        return max(1, *(f.exitcode for f in failure.failures.values()))
    return 0


def _worker(structure: Path, calculator: str, check: bool, output: Path | None) -> None:
    """One rank of a job that somebody started."""
    import torch
    import torch.distributed as dist

    for ours, slurm in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        if ours not in os.environ and slurm in os.environ:
            os.environ[ours] = os.environ[slurm]
    if "MASTER_ADDR" not in os.environ:
        _stop("Set MASTER_ADDR and MASTER_PORT, or start the job with torchrun.")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
            if dist.get_rank() > 0:  # one voice
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            _evaluate(structure, calculator, check, output)
    finally:
        dist.destroy_process_group()


def _evaluate(structure: Path, name: str, check: bool, output: Path | None) -> None:
    import torch.distributed as dist
    from ase.io import read, write

    from .calculator import distribute, load_calculator, statistics
    from .errors import DistcompileError

    first = not dist.is_initialized() or dist.get_rank() == 0
    stock: dict[str, Any] = {}
    stock_time, problem = 0.0, ""
    atoms: Any = None
    calculator: Any = None
    try:
        atoms = read(structure)
    except Exception as error:  # readers of ASE raise whatever their format makes them raise
        problem = f"ASE cannot read {structure}: {str(error) or type(error).__name__}."
    try:
        calculator = load_calculator(name)
        if check and first and not problem:
            stock, stock_time = _timed(calculator, atoms)
    except ValueError as error:
        problem = str(error)
    _stop_together(problem)
    try:
        distribute(calculator)
        _, first_time = _timed(calculator, atoms)
        results, run_time = _timed(calculator, atoms)
    except (DistcompileError, TypeError) as error:
        _stop(str(error) if first else "")
    rows = statistics(calculator)
    if not first:
        return
    _report(atoms, results, rows, first_time, run_time)
    if check:
        _report_check(results, stock, stock_time, run_time)
    if output is not None:
        from ase.calculators.singlepoint import SinglePointCalculator

        atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if k in _WRITTEN})
        write(output, atoms)
        print(f"Results written to {output}.")


_WRITTEN = ("energy", "forces", "stress", "magmoms", "energies")


def _timed(calculator: Any, atoms: Any) -> tuple[dict[str, Any], float]:
    """All results that the calculator has for a structure, and the seconds they took."""
    import numpy as np
    from ase.stress import full_3x3_to_voigt_6_stress

    wanted = [p for p in ("energy", "forces", "stress", "magmoms") if p in calculator.implemented_properties]
    if not atoms.pbc.all() and "stress" in wanted:
        wanted.remove("stress")  # ASE refuses a stress without a cell
    calculator.reset()
    start = time.perf_counter()
    calculator.calculate(atoms.copy(), wanted, ["positions", "numbers", "cell", "pbc"])
    seconds = time.perf_counter() - start
    results = dict(calculator.results)
    if np.shape(results.get("stress", 0)) == (3, 3):
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    return results, seconds


def _report(atoms: Any, results: dict[str, Any], rows: list[dict[str, Any]], first: float, seconds: float) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{atoms.get_chemical_formula()}: {len(atoms)} atoms", show_header=False)
    table.add_row(
        "energy", f"{float(results['energy']):.6f} eV", f"{float(results['energy']) / len(atoms):.6f} eV/atom"
    )
    if "forces" in results:
        norms = np.linalg.norm(results["forces"], axis=1)
        table.add_row("largest force", f"{norms.max():.6f} eV/A", f"atom {int(norms.argmax())}")
    if "stress" in results:
        table.add_row("stress (xx yy zz yz xz xy)", " ".join(f"{s:.5f}" for s in results["stress"]), "eV/A^3")
    if "magmoms" in results:
        table.add_row("largest moment", f"{float(np.abs(results['magmoms']).max()):.4f} muB", "")
    table.add_row("time", f"{seconds:.2f} s", f"first call, compiling: {first:.1f} s")
    console.print(table)
    if rows:
        spaces = list(rows[0]["owned"])
        table = Table("rank", *[f"{s} owned + halo" for s in spaces], "MB exchanged", title="Ranks")
        for row in rows:
            counts = [f"{row['owned'][s]} + {row['halo'][s]}" for s in spaces]
            table.add_row(str(row["rank"]), *counts, f"{row['bytes'] / 1e6:.2f}")
        console.print(table)


def _report_check(results: dict[str, Any], stock: dict[str, Any], stock_time: float, seconds: float) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    table = Table("", "largest difference", "largest value", title="Against the stock model")
    for name in ("energy", "forces", "stress", "magmoms"):
        if name in results and name in stock:
            ours, theirs = np.asarray(results[name]), np.asarray(stock[name])
            table.add_row(name, f"{np.abs(ours - theirs).max():.2e}", f"{np.abs(theirs).max():.4f}")
    table.add_row("time", f"{seconds:.2f} s", f"stock: {stock_time:.2f} s")
    Console(highlight=False).print(table)


def _check_output(output: Path) -> None:
    """Find out before the work whether its results can be written."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        _stop(f"Results cannot be written to {output}: {folder} is no folder that can be written to.")
    try:
        known = ioformats[filetype(str(output), read=False)]
    except (UnknownFileTypeError, KeyError):
        _stop(f"Results cannot be written to {output}: ASE knows no format of that name. Use .extxyz or .traj.")
    if not known.can_write:
        _stop(f"Results cannot be written to {output}: ASE cannot write {known.name}. Use .extxyz or .traj.")


def _stop(message: str) -> NoReturn:
    """End with a message instead of a traceback."""
    if message:
        print(f"distcompile: {message}", file=sys.stderr)
    raise typer.Exit(1)


def _stop_together(problem: str) -> None:
    """End all ranks if one has a problem; the first rank says which."""
    import torch.distributed as dist

    problems: list[Any] = [problem]
    if dist.is_initialized():
        problems *= dist.get_world_size()
        dist.all_gather_object(problems, problem)
    said = next((p for p in problems if p), "")
    if said:
        _stop(said if not dist.is_initialized() or dist.get_rank() == 0 else "")


if __name__ == "__main__":
    main()
