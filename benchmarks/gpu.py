"""Everything that has to be shown on a machine with GPUs, in stages that can be started again: `make gpu`.

    python benchmarks/gpu.py                              all stages that this environment's packages take
    python benchmarks/gpu.py --stages exact speed         some of them
    python benchmarks/gpu.py --report docs/gpu.md         the page, from all results so far
    python benchmarks/gpu.py --device cpu --atoms 64      a rehearsal, on any machine

Each run is a process of its own, of at most ten minutes, and leaves a line in a file of results; what has a line is not
run again. Nothing is fetched from a network.

- exact: every model of docs/models.md on the device: stock there, ours on one rank, on two ranks that share a device,
  and on a rank for each device, against the stock model on the processor in float64.
- speed: ours operator by operator and as Inductor's Triton, beside stock, `torch.compile`, and cuEquivariance where it
  is installed: rocksalt with the density of NaCl, float32, energy, forces and stress.
- ranks: one device beside all: `LocalWorld(devices=...)` in one process, and a process a device over NCCL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

LONGEST = 600
"""Seconds that one run may take."""
MODELS = {
    "mace:medium": "mace", "chgnet": "chgnet", "matgl:TensorNet": "matgl", "sevennet": "sevenn",
    "nequip:NequIP:float32:4:64": "nequip", "nequip:Allegro:float32:2:64": "allegro", "esen:4:128": "fairchem",
}  # fmt: skip
"""Models that are timed, as `single.stock_case` names them, and the package that each needs."""
MODES = ("stock", "compile", "cuequivariance", "eager", "inductor", "kernels")
ATOMS = (1_000, 8_000, 64_000, 256_000, 1_000_000)
CONSTANT = 5.64
"""Edge of the cubic cell of NaCl, A."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run."""

    stage: str
    model: str
    mode: str = ""
    atoms: int = 0

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in dataclasses.astuple(self) if part)


def runs(stages: list[str], models: list[str] | None, atoms: list[int]) -> Iterator[Run]:
    """All runs of some stages that this environment has the packages for, small ones first."""
    import importlib.util

    import zoo

    if "exact" in stages:
        yield from (Run("exact", name) for name in zoo.MODELS if zoo.is_installed(name) and models is None)
    timed = models or [name for name, package in MODELS.items() if importlib.util.find_spec(package)]
    for n in atoms:
        for name in timed:
            if "speed" in stages:
                yield from (Run("speed", name, mode, n) for mode in MODES)
    if "ranks" in stages:
        yield from (
            Run("ranks", name, mode, n) for n in atoms for name in timed for mode in ("one process", "processes")
        )


def devices(kind: str) -> list[str]:
    """All devices of a kind; of the processor, two names for it."""
    if kind == "cpu":
        return ["cpu", "cpu"]
    return [f"{kind}:{i}" for i in range(torch.get_device_module(kind).device_count())]


def described(kind: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    card = platform.processor() or platform.machine()
    if kind == "cuda":
        card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {"device": card, "torch": torch.__version__, "threads": torch.get_num_threads()}


# ---- What a run does.


def exact(name: str, kind: str) -> dict[str, Any]:
    """The largest differences from the stock model on the processor, relative to the largest value of each output."""
    import structures
    import zoo

    import distcompile
    from distcompile import LocalWorld
    from distcompile.ir.tree import flatten
    from distcompile.testing import FLOOR

    case = zoo.MODELS[name][1]()
    graphs = [_arguments(case.graph(make())) for make in (structures.crystal, structures.film, structures.small_cell)]
    stock = [flatten(case.model(*on(graph, "cpu"), **case.kwargs))[0] for graph in graphs]
    model, first = case.model.to(kind), on(graphs[0], kind)

    def apart(call: Callable[..., Any]) -> float:
        worst = 0.0
        for graph, expected in zip(graphs, stock, strict=True):
            found = {leaf.path: leaf.tensor for leaf in flatten(call(*on(graph, kind)))[0]}
            for leaf in expected:
                if leaf.tensor.numel():
                    difference = (found[leaf.path].detach().cpu() - leaf.tensor.detach()).abs().max()
                    worst = max(worst, float(difference) / max(float(leaf.tensor.abs().max()), FLOOR))
        return worst

    def compiled_as(lowering: Any) -> Any:
        options: dict[str, Any] = {"model_kwargs": case.kwargs, "world": LocalWorld(1), "lowering": lowering}
        return distcompile.compile(model, _one(first), **options)

    compiled = compiled_as("eager")
    worlds = {"one rank": LocalWorld(1), "two ranks": LocalWorld(2), "all devices": LocalWorld(devices=devices(kind))}
    return {
        "stock": apart(lambda *graph: model(*graph, **case.kwargs)),
        **{label: apart(compiled.on(world)) for label, world in worlds.items()},
        "kernels": apart(compiled_as("kernels")),
    }


def speed(run: Run, kind: str) -> dict[str, Any]:
    """Time and memory an atom of one way to evaluate a model."""
    import single

    import distcompile

    case, structure = _case(run), rocksalt(run.atoms)
    model = case.model.float().eval().requires_grad_(False).to(kind)

    def stock(*graph: Any) -> Any:
        return model(*graph, **case.kwargs)

    call: Callable[..., Any] = torch.compile(stock) if run.mode == "compile" else stock
    if run.mode in ("eager", "inductor"):
        example = on(single.in_single_precision(case.graph(rocksalt(64))), kind)
        options: dict[str, Any] = {"model_kwargs": case.kwargs, "lowering": run.mode, "validate": False}
        call = distcompile.compile(model, _one(example), **options)
    return timed(call, on(single.in_single_precision(case.graph(structure)), kind), len(structure), kind)


def ranks(run: Run, kind: str) -> dict[str, Any]:
    """Time an atom on one device and on all; in processes, of this process's part."""
    import single
    import torch.distributed as dist

    import distcompile
    from distcompile import LocalWorld

    here = kind
    if "LOCAL_RANK" in os.environ:
        here = kind if kind == "cpu" else f"{kind}:{os.environ['LOCAL_RANK']}"
        dist.init_process_group("gloo" if kind == "cpu" else "nccl")
    case, structure = _case(run), rocksalt(run.atoms)
    model = case.model.float().eval().requires_grad_(False).to(here)
    example = on(single.in_single_precision(case.graph(rocksalt(64))), here)
    compiled = distcompile.compile(
        model, _one(example), model_kwargs=case.kwargs, world=LocalWorld(1), validate=False, lowering="eager"
    )
    graph = on(single.in_single_precision(case.graph(structure)), here)
    alone = timed(compiled, graph, len(structure), here)
    world = distcompile.ProcessGroupWorld() if dist.is_initialized() else LocalWorld(devices=devices(kind))
    together = timed(compiled.on(world), graph, len(structure), here)
    efficiency = alone["ms/atom"] / together["ms/atom"] / world.size
    return {"ranks": world.size, "one": alone["ms/atom"], "all": together["ms/atom"], "efficiency": efficiency}


def timed(call: Callable[..., Any], graph: tuple[Any, ...], atoms: int, kind: str) -> dict[str, Any]:
    """The fastest of some evaluations after the first ones, and the most memory that one took."""
    module = torch.get_device_module(torch.device(kind).type)
    start = time.perf_counter()
    call(*graph)
    module.synchronize()
    prepared = time.perf_counter() - start
    resting = module.memory_allocated() if hasattr(module, "memory_allocated") else 0
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 20 and sum(times) < 20.0:
        start = time.perf_counter()
        call(*graph)
        module.synchronize()
        times.append(time.perf_counter() - start)
    peak = module.max_memory_allocated() - resting if hasattr(module, "max_memory_allocated") else 0
    return {"first s": prepared, "ms/atom": 1e3 * min(times) / atoms, "kB/atom": peak / 1e3 / atoms}


def rocksalt(atoms: int) -> Any:
    """A cube of rocksalt with about so many atoms."""
    import single

    return single.rocksalt((max(1, round((atoms / 8) ** (1 / 3))),) * 3, CONSTANT)


def _case(run: Run) -> Any:
    import single

    case = single.stock_case(run.model)
    if run.mode == "cuequivariance":
        from mace.cli.convert_e3nn_cueq import run as converted

        case = dataclasses.replace(case, model=converted(case.model, return_model=True, device="cuda"))
    return case


def on(graph: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """What a model is called with, on a device."""
    from distcompile.ir.tree import flatten

    leaves, tree = flatten(graph)
    there = [x.tensor.detach().clone().to(device).requires_grad_(x.tensor.requires_grad) for x in leaves]
    return tree.unflatten(there)  # type: ignore[no-any-return]


def _arguments(graph: Any) -> tuple[Any, ...]:
    return graph if isinstance(graph, tuple) else (graph,)


def _one(graph: tuple[Any, ...]) -> Any:
    """What `distcompile.compile` takes as an example."""
    return graph if len(graph) > 1 else graph[0]


# ---- Processes, results, the page.


def perform(run: Run, kind: str) -> None:
    """Run in a process of its own; print a line of JSON."""
    warnings.simplefilter("ignore")
    found = exact(run.model, kind) if run.stage == "exact" else {"speed": speed, "ranks": ranks}[run.stage](run, kind)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found), flush=True)


def launched(run: Run, kind: str) -> dict[str, Any]:
    """The result of a run in a process of its own, or why there is none."""
    start = [sys.executable]
    if run.mode == "processes":
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(devices(kind))}"]
        start += torchrun
    command = [*start, __file__, "--device", kind, "--one", json.dumps(dataclasses.astuple(run))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {LONGEST} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])  # type: ignore[no-any-return]
    words = [line for line in done.stderr.strip().splitlines() if "Error" in line or "error" in line]
    return {"failed": (words or [f"ended with {done.returncode}"])[-1][:200]}


def report(rows: list[dict[str, Any]]) -> str:
    """The page of results."""
    machines = dict.fromkeys(f"{r['device']}, torch {r['torch']}, {r['threads']} threads" for r in rows)
    parts = [f"# On GPUs\n\nMade by `make gpu`, on {'; '.join(machines)}.", f"## Exactness\n\n{EXPLAINED}"]
    exact_ways = dict.fromkeys(("stock", "one rank", "two ranks", "all devices", "kernels"), ".0e")
    parts.append(_table(exact_ways, [r for r in rows if r["stage"] == "exact"]))
    speeds = {"atoms": "", "mode": "", "ms/atom": ".5f", "kB/atom": ".1f", "first s": ".0f"}
    parts += ["## Time and memory", _table(speeds, [r for r in rows if r["stage"] == "speed"])]
    together = {"atoms": "", "mode": "", "ranks": "", "one": ".5f", "all": ".5f", "efficiency": ".0%"}
    parts += ["## One device and all, ms/atom", _table(together, [r for r in rows if r["stage"] == "ranks"])]
    return "\n\n".join(parts) + "\n"


EXPLAINED = "Largest difference from the stock model on the processor, relative to the largest value of an output."


def _table(columns: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """A table with these columns, each in its format; runs that failed say why."""
    titles = ["model", *columns, "failed"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [format(row[name], how) if name in row else "" for name, how in columns.items()]
        lines.append(f"| {' | '.join([row['model'], *cells, row.get('failed', '')])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["exact", "speed", "ranks"], choices=["exact", "speed", "ranks"])
    parser.add_argument("--models", nargs="+", help=f"those to time, of {', '.join(MODELS)}")
    parser.add_argument("--atoms", nargs="+", type=int, default=list(ATOMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, default=Path("gpu-results.jsonl"))
    parser.add_argument("--report", type=Path, help="write the page from the results, and run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return perform(Run(*json.loads(options.one)), options.device)
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    if options.report:
        options.report.write_text(report(rows))
        return None
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here. A rehearsal runs anywhere: --device cpu --atoms 64")
    done = {row["run"] for row in rows}
    with options.results.open("a") as results:
        for run in runs(options.stages, options.models, options.atoms):
            if run.name in done or (run.mode == "cuequivariance" and not run.model.startswith("mace")):
                continue
            found = launched(run, options.device)
            row = {"run": run.name, **dataclasses.asdict(run), **described(options.device), **found}
            print(f"{run.name:<45} {found}", flush=True)
            results.write(json.dumps(row) + "\n")
            results.flush()
    return None


if __name__ == "__main__":
    main()
