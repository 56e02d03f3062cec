"""One rank beside several, one thread each: time, memory and traffic of a step, and parallel efficiency.

    python benchmarks/ranks.py --models chgnet mace:medium --cells 8 8 8 --ranks 1 2

Rattled rocksalt MgO, float32, energy and forces and stress. Every figure comes from processes of its own, started by
torchrun; a step is the slowest rank's. Efficiency is the time on the first number of ranks, divided by the time on
more and by how many times more they are. Bytes are what all ranks receive in halo exchanges and reductions, counted.
Each job of several ranks is followed by what as many processes take that share nothing (``apart``), each with its part
of the cells: what the memory and the caches of one machine leave of their speed. With ``--without overlap`` it runs
again without that pass. ``waited`` are the seconds of a step in which a rank has nothing to do but wait for rows of
others; ``--network`` lets no message arrive earlier than a slower network would bring it.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from typing import Any

import torchrun
from single import at_rest, in_single_precision, peak_memory, rocksalt, stock_case


def slowed(latency: float, bandwidth: float) -> list[float]:
    """Let messages of this process take as long as on a slower network; returns where seconds of waiting are noted."""
    from distcompile.runtime.world import _ProcessGroupCommunicator as Communicator

    waits: list[float] = []
    begin = Communicator.all_to_all_start

    def start(self: Any, rows: Any, send: Any, receive: Any) -> Any:
        arrived = begin(self, rows, send, receive)
        row = rows.element_size() * math.prod(rows.shape[1:])
        due = time.perf_counter() + (latency + sum(receive) * row / bandwidth if bandwidth else 0.0)

        def wait() -> Any:
            before = time.perf_counter()
            time.sleep(max(due - before, 0.0))
            found = arrived()
            waits.append(time.perf_counter() - before)
            return found

        return wait

    Communicator.all_to_all_start = start  # type: ignore[method-assign]
    return waits


def measure(
    name: str, cells: tuple[int, int, int], lowering: Any, apart: bool, without: list[str], network: list[float]
) -> dict[str, Any] | None:
    """Run on every rank of a job: one step's seconds, bytes received and memory; None on all but the first rank."""
    import torch
    import torch.distributed as dist

    import distcompile
    from distcompile.api import compiled_for
    from distcompile.model import Settings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    case = stock_case(name)
    model = case.model.float().eval()
    model.requires_grad_(False)
    small = in_single_precision(case.graph(rocksalt((2, 2, 2))))
    world = distcompile.LocalWorld(1) if apart else distcompile.ProcessGroupWorld()
    settings = Settings(world, lowering=lowering, without=tuple(without))
    compiled, _ = compiled_for(model, small, settings, case.kwargs)
    n, ranks = 8 * math.prod(cells), dist.get_world_size()
    atoms = rocksalt((cells[0] // ranks, *cells[1:]) if apart else cells)
    graph = in_single_precision(case.graph(atoms))
    resting = at_rest()
    waits = slowed(*network)
    times, waited = [], []
    for _ in range(3):
        waits.clear()
        dist.barrier()
        start = time.perf_counter()
        compiled(*graph)
        times.append(time.perf_counter() - start)
        waited.append(sum(waits))
        if sum(times) > 120:
            break
    mine = torch.tensor([min(times[1:] or times), peak_memory() - resting, min(waited)])
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    rows = compiled.stats(*graph)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    halo = sum(row["halo"]["atoms"] for row in rows)
    return {
        "atoms": n, "waited": float(mine[2]), "ms/atom": 1e3 * float(mine[0]) / n, "MB/atom": float(mine[1]) / n / 1e6,
        "halo": halo / n, "MB/step": sum(row["bytes"] for row in rows) / 1e6, "partition": rows[0]["partition"],
    } if first else None  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["chgnet", "mace:medium", "matgl:TensorNet"])
    parser.add_argument("--cells", nargs=3, type=int, default=[8, 8, 8], help="cubic cells of 8 atoms")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--lowering", choices=["eager", "kernels", "inductor"], default="eager")
    parser.add_argument("--network", nargs=2, type=float, default=[0, 0], metavar=("SECONDS", "BYTES_PER_SECOND"))
    parser.add_argument("--without", nargs="+", default=[], metavar="PASS", help="run again without these passes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cells = tuple(options.cells)
    if options.one:
        torchrun.say(measure(options.one, cells, options.lowering, options.apart, options.without, options.network))
        return
    titles = ("model", "atoms", "ranks", "ms/atom", "efficiency", "MB/atom a rank", "halo/atom", "MB/step", "waited")
    print("{:<18} {:>7} {:>10} {:>8} {:>10} {:>14} {:>9} {:>8} {:>7}".format(*titles))
    kinds = {"": [], "apart": ["--apart"]} | ({"without": ["--without", *options.without]} if options.without else {})
    for name in options.models:
        baseline = 0.0
        for ranks, kind in [(r, kind) for r in options.ranks for kind in (kinds if r > 1 else [""])]:
            arguments = ["--one", name, "--cells", *map(str, cells), "--lowering", options.lowering]
            arguments += ["--network", *map(str, options.network), *kinds[kind]]
            row = torchrun.run(__file__, ranks, arguments)
            title = f"{ranks} {kind}"
            if isinstance(row, str):
                print(f"{name:<18} {'':>7} {title:<10} {row[:80]}", flush=True)
                continue
            baseline = baseline or row["ms/atom"] * ranks
            print(
                f"{name:<18} {row['atoms']:>7} {title:<10} {row['ms/atom']:>8.3f} "
                f"{baseline / ranks / row['ms/atom']:>10.0%} {row['MB/atom']:>14.3f} {row['halo']:>9.2f} "
                f"{row['MB/step']:>8.1f} {row['waited']:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
