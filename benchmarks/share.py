"""One rank's share of a structure that no rank has whole: seconds and bytes to make it, and to evaluate it.

    python benchmarks/share.py --model chgnet --cells 50 --ranks 64 --rank 21

Rattled rocksalt NaCl, n x n x n cubic cells of 8 atoms, 50 for a million. The calculator's graph object is learned from
small structures. Then the share of one rank of many is made and run alone, in this process: what others would send it
is zeros, and messages take no time. ``atoms divided`` is done once in a long while, ``neighbours`` when an atom has
moved a quarter of an Angstrom, the other parts in each step. Memory is the growth of the resident set over what the
compiled model takes at rest.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from ase.build import bulk
from single import peak_memory, resident
from torch import Tensor

import distcompile
from distcompile.calculators.calculator import load_calculator
from distcompile.layout.evaluate import Divided, divide
from distcompile.layout.structure import structure_of
from distcompile.runtime.division.shares import completed
from distcompile.runtime.world import Communicator, active

T = TypeVar("T")


class Alone(Communicator):
    """A rank whose peers send zeros at once."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        received = rows.new_zeros(sum(receive), *rows.shape[1:])
        return lambda: received

    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        return value.clone()

    def all_gather_objects(self, value: Any) -> list[Any]:
        return [value] * self.size


def timed(what: str, work: Callable[[], T], times: int = 1) -> T:
    """Do it, and print the seconds of the fastest time."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    print(f"{what:<34} {min(seconds):8.3f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="chgnet", help="as distcompile run --calculator takes it")
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rank", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    small = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((2, 2, 2))
    small.rattle(0.05, seed=1)
    world = distcompile.LocalWorld(2)  # one rank alone runs regions in step, which several do not
    small.calc = distcompile.distribute(load_calculator(options.model), world, lowering="kernels")
    small.get_forces()
    last = small.calc.calculate.graphs.last
    if last is None or last[0].why_whole:
        raise SystemExit("Ranks do not make their rows of this model's graph objects themselves.")
    evaluator, own = last[0], last[0].own_rows()
    atoms = small.copy().repeat((options.cells // 2,) * 3)
    atoms.rattle(0.05, seed=2)
    resting = resident()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the resident set
    structure = structure_of(atoms)
    print(f"{options.model}: {len(atoms)} atoms, rank {options.rank} of {options.ranks}")
    ranks = timed("atoms divided", lambda: divide(structure, options.ranks))
    evaluator.forget()
    shares = Divided(evaluator, structure)
    timed("digest of the positions", lambda: shares.digest)
    mine = timed("neighbours, rows of the graph", lambda: shares.share(options.rank, ranks))
    mine = timed("the same pairs: rows of the graph", lambda: shares.share(options.rank, ranks), 3)
    prepared = timed("index program, checks", lambda: own.indexed(mine), 3)
    plan = timed("plan", lambda: own.planned(mine, prepared, ranks, options.rank, options.ranks), 3)
    sent = {name: (plan.owned[name][: len(keys)], plan.plans[name].splits[1]) for name, keys in plan.wanted.items()}
    plans = timed("rows to send", lambda: completed(plan, sent), 3)
    made = peak_memory() - resting
    rows = {name: f"{len(p.owned)} + {len(p.halo)}" for name, p in plans.items()}
    print(f"rows owned + read: {rows}")
    with active(Alone(options.rank, options.ranks)):
        given = prepared.values, plans, prepared.sizes, {}, {}
        timed("evaluation", lambda: own.executor.results_here(*given), 3)
    print(
        f"memory: {made / 1e6:.0f} MB with the structure and the rows, {(peak_memory() - resting) / 1e6:.0f} MB in all"
    )


if __name__ == "__main__":
    main()
