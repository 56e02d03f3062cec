"""Whole steps of dynamics on one process and on several, beside what `distcompile plan` predicts for them.

    python benchmarks/steps.py --models chgnet mace:medium --cells 8 --ranks 1 2
    python benchmarks/steps.py --models mace:medium --dtype float64 --constant 4.21

Velocity Verlet at 300 K moves rocksalt, NaCl by default, through the distributed calculator, with kernels and one
thread a process; every figure comes from processes of its own, started by torchrun. Printed are the median of the last
steps, the part of it outside of the compiled program, the efficiency against the first number of ranks, and the
prediction, made in one process, with the machine to itself, before all that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchrun
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from graphs import calculator

import distcompile
from distcompile.app.forecast import forecast
from distcompile.runtime.execution.executor import Executor

FIRST, STEPS = 3, 9
"""Steps before those that count, and steps that do."""


def structure(cells: int, constant: float) -> Any:
    """Displaced rocksalt with velocities."""
    atoms = bulk("NaCl" if constant > 5 else "MgO", "rocksalt", constant, cubic=True).repeat(cells)
    atoms.rattle(0.02, seed=1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    return atoms


def predicted(name: str, dtype: str, atoms: Any, ranks: list[int]) -> dict[int, float]:
    """Seconds of a step on each number of ranks."""
    found = forecast(atoms, calculator(name, dtype), ranks, ["cpu"], None)
    return {column.ranks.parts: column.steps[0].total for column in found.columns}


def measured(name: str, dtype: str, atoms: Any) -> dict[str, Any] | None:
    """Seconds of a step, and of the compiled program within it; on all ranks of this job."""
    dist.init_process_group("gloo")
    atoms.calc = distcompile.distribute(calculator(name, dtype), lowering="kernels")
    run, inside = Executor.results_here, []

    def noted(self: Executor, *given: Any) -> Any:
        start = time.perf_counter()
        try:
            return run(self, *given)
        finally:
            inside.append(time.perf_counter() - start)

    Executor.results_here = noted  # type: ignore[method-assign]
    motion, seconds, within = VelocityVerlet(atoms, units.fs), [], []
    for _ in range(FIRST + STEPS):
        inside.clear()
        start = time.perf_counter()
        motion.run(1)
        seconds.append(time.perf_counter() - start)
        within.append(sum(inside))
    is_first = dist.get_rank() == 0
    dist.destroy_process_group()
    last = statistics.median(seconds[FIRST:]), statistics.median(within[FIRST:])
    return {"step": last[0], "outside": 1 - last[1] / last[0]} if is_first else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["chgnet", "mace:medium"], help="as in benchmarks/graphs.py")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of MACE")
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--constant", type=float, default=5.64, help="of the cell, in A; MgO up to 5")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    atoms = structure(options.cells, options.constant)
    if options.one:
        torchrun.say(measured(options.one, options.dtype, atoms))
        return
    print(f"{'model':<14} {'atoms':>6} {'ranks':>5} {'s/step':>8} {'outside':>8} {'efficiency':>10} {'plan':>8}")
    arguments = ["--dtype", options.dtype, "--cells", str(options.cells), "--constant", str(options.constant)]
    for name in options.models:
        plan = predicted(name, options.dtype, atoms.copy(), options.ranks)
        baseline = 0.0
        for ranks in options.ranks:
            row = torchrun.run(__file__, ranks, ["--one", name, *arguments])
            if isinstance(row, str):
                print(f"{name:<14} {len(atoms):>6} {ranks:>5} {row[:80]}", flush=True)
                continue
            baseline = baseline or row["step"] * ranks
            print(
                f"{name:<14} {len(atoms):>6} {ranks:>5} {row['step']:>8.3f} {row['outside']:>8.1%} "
                f"{baseline / ranks / row['step']:>10.0%} {plan[ranks]:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
