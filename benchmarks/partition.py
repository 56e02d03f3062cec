"""Partitions: halo rows, balance and predicted step of every method, and what dividing takes.

    python benchmarks/partition.py --ranks 8 64 512
    python benchmarks/partition.py --systems liquid --atoms 1000000 --ranks 64 --only-chosen

Systems of tests/systems.py. Halo rows are per atom, summed over ranks; the step is that of the rank that takes longest,
over that of the mean work without halo rows. With --only-chosen, the time and the memory of the whole plan of all ranks
(`runtime.plan.divide`) instead of a line for each method.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sympy
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from systems import System, bulk, film, liquid, nanoparticle, slab

from distcompile.ir import Pointer, Space
from distcompile.runtime.division.partition import bisect, metis, partition, scaled, scored
from distcompile.runtime.division.plan import divide
from distcompile.runtime.division.readers import readers

SYSTEMS: dict[str, Callable[[int], System]] = {
    "bulk": lambda n: bulk(round((n / 8) ** (1 / 3))),
    "liquid": liquid,
    "slab": lambda n: slab(round((n / 41) ** (1 / 2))),
    "nanoparticle": lambda n: nanoparticle((n / 0.107 * 3 / 4 / 3.1416) ** (1 / 3)),
    "film": lambda n: film(round((n / 8) ** (1 / 2))),
}
"""By about how many atoms."""


def methods(system: System, parts: int) -> None:
    """A line for each method, and one for the partition that is chosen."""
    n, work = len(system.positions), system.work.numpy()
    reading = readers(n, system.pairs)
    reads = reading.T.tocsr()
    tried = {
        "slabs": lambda: _slabs(system, parts),
        "RCB": lambda: bisect(scaled(system.positions, system.pairs), system.work, parts).numpy(),
        "METIS k-way": lambda: metis(reading, reads, work, parts, False),
        "METIS recursive": lambda: metis(reading, reads, work, parts, True),
    }
    for name, method in tried.items():
        start = time.perf_counter()
        ranks = method()
        seconds = time.perf_counter() - start
        found = scored(ranks, name, reading, work, parts)
        _line(system, parts, name, found.halo_per_atom, found.imbalance, found.step, seconds)
    start = time.perf_counter()
    found = partition(n, system.pairs, system.work, [system.positions], parts)
    seconds = time.perf_counter() - start
    _line(system, parts, f"-> {found.method}", found.halo_per_atom, found.imbalance, found.step, seconds)


def whole_plan(system: System, parts: int) -> None:
    """Partition, owners of all rows and halos of all ranks; what it takes beside the system itself."""
    atoms, edges = Space("atoms", sympy.Symbol("atoms")), Space("edges", sympy.Symbol("edges"))
    pointers = [
        Pointer("sender", edges, atoms, 0, "sender"),
        Pointer("receiver", edges, atoms, 1, "receiver", owner=True),
    ]
    sizes = {"atoms": len(system.positions), "edges": system.pairs.shape[1]}
    values = {"sender": system.pairs[0], "receiver": system.pairs[1]}
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the resident set
    start = time.perf_counter()
    found = divide([atoms, edges], pointers, sizes, values, [system.positions], parts).partition
    seconds = time.perf_counter() - start
    _line(system, parts, found.method, found.halo_per_atom, found.imbalance, found.step, seconds)
    print(f"peak memory of the process, the system included: {_peak() / 1e9:.1f} GB")


def _slabs(system: System, parts: int) -> torch.Tensor:
    """As much work for each rank along the longest axis."""
    x = system.positions
    order = x[:, int((x.amax(0) - x.amin(0)).argmax())].argsort(stable=True)
    cumulative = system.work[order].cumsum(0)
    ranks = torch.empty(len(x), dtype=torch.int64)
    ranks[order] = ((cumulative - 1) * parts / cumulative[-1]).long()
    return ranks.numpy()


def _line(system: System, parts: int, name: str, halo: float, imbalance: float, step: float, seconds: float) -> None:
    n = len(system.positions)
    print(
        f"{system.name:<12} {n:>8} {parts:>5} {name:<26} {halo:>9.3f} {imbalance:>9.3f} {step:>7.3f} {seconds:>8.2f}",
        flush=True,
    )


def _peak() -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--atoms", type=int, default=100_000, help="about")
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--only-chosen", action="store_true")
    options = parser.parse_args()
    titles = ("system", "atoms", "ranks", "method", "halo/atom", "imbalance", "step", "seconds")
    print("{:<12} {:>8} {:>5} {:<26} {:>9} {:>9} {:>7} {:>8}".format(*titles))
    for name in options.systems:
        system = SYSTEMS[name](options.atoms)
        for parts in options.ranks:
            (whole_plan if options.only_chosen else methods)(system, parts)


if __name__ == "__main__":
    main()
