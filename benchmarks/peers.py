"""fairchem's own graph parallelism and ours: one eSEN, one system, two ranks, one thread each.

    python benchmarks/peers.py --cells 16 2 4

Both are given the same graph (edges included), random weights, float32, energy and forces and stress. fairchem runs in
its two modes: all-gather (atoms by number) and all-to-all (atoms by place). Time is the better of two evaluations of
the slowest rank, memory the growth of the resident set of the fuller one, bytes what both ranks receive in every
collective of an evaluation, counted as the calls are made; forces are compared with those of the stock model.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrun
from single import in_single_precision, peak_memory, resident, rocksalt
from torch.utils._python_dispatch import TorchDispatchMode

OURS: dict[str, dict[str, Any]] = {
    "distcompile": {},
    "distcompile memory": {"memory": 10**9},
    "distcompile C++": {"memory": 10**9, "lowering": "inductor"},
}
"""Ours, and the options of each: nothing said; a fifth of fairchem's memory a rank; generated code, too."""
MODES = ("fairchem all-gather", "fairchem all-to-all", *OURS)


class Asked(torch.nn.Module):
    """A model that returns what the comparison is about; whole results of ours are put together on every rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        found = self.model(data)
        return {name: found[name] for name in ("energy", "forces", "stress")}


class Received(TorchDispatchMode):
    """Counts the bytes that this rank receives from others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size, rank = dist.get_world_size(), dist.get_rank()
        name = func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional"):
            if name == "all_gather_into_tensor":
                self.bytes += args[0].nbytes * (size - 1)
            elif name in ("all_to_all_single", "alltoall_base_"):
                rows = args[0] if name == "alltoall_base_" else args[0].new_empty(sum(args[1]), *args[0].shape[1:])
                splits = args[3] if name == "alltoall_base_" else args[1]
                self.bytes += rows.nbytes / max(rows.shape[0], 1) * (rows.shape[0] - splits[rank])
            elif name in ("all_reduce", "allreduce_"):
                value = args[0][0] if isinstance(args[0], list) else args[0]
                self.bytes += 2 * value.nbytes * (size - 1) / size
            elif name == "reduce_scatter_tensor":
                self.bytes += args[0].nbytes * (size - 1) / size
            elif name == "recv_":
                self.bytes += args[0][0].nbytes
            elif name == "allgather_":
                self.bytes += sum(t.nbytes for t in args[0][0]) * (size - 1) / size
        return func(*args, **(kwargs or {}))


def measure(mode: str, cells: tuple[int, int, int], layers: int, channels: int) -> dict[str, Any]:
    """Run on every rank of a job."""
    import zoo
    from fairchem.core.common import gp_utils
    from fairchem.core.common.parallelism.graph_parallel_a2a import compute_a2a_partition
    from fairchem.core.common.parallelism.graph_partition import PartitionStrategy

    import distcompile

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    size, rank = dist.get_world_size(), dist.get_rank()
    case = zoo.esen(layers, channels)
    model = Asked(case.model).float().eval()
    model.requires_grad_(False)

    def graph(of: tuple[int, int, int]) -> Any:
        return in_single_precision(case.graph(rocksalt(of)))[0]

    call: Any = model
    if mode in OURS:
        call = distcompile.compile(model, graph((2, 2, 2)), validate=False, **OURS[mode])
    elif size > 1:
        gp_utils.setup_graph_parallel_groups(size, "gloo")
        way = ("all_to_all", "spatial") if mode.endswith("all-to-all") else ("allgather", "index_split")
        gp_utils.set_gp_config(gp_utils.GraphParallelConfig(size, *map(str, way)))

    def given() -> Any:
        """The graph; for fairchem with the edges of this rank's atoms, as its own neighbour list makes them."""
        data = graph(cells)
        if mode not in OURS and size > 1:
            n = data.pos.shape[0]
            mine = torch.tensor_split(torch.arange(n), size)[rank]
            if mode.endswith("all-to-all"):
                by_place = PartitionStrategy("spatial")
                _, mine = compute_a2a_partition(data.pos, n, data.pos.device, size, rank, by_place)
            keep = torch.isin(data.edge_index[1], mine)
            data.edge_index, data.cell_offsets = data.edge_index[:, keep], data.cell_offsets[keep]
            data.nedges = keep.sum()[None]
        return data

    graphs = [given() for _ in range(3)]
    with Received() as received:
        found = call(graphs.pop())
    resting = resident()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the resident set
    times = []
    for one in graphs:
        dist.barrier()
        start = time.perf_counter()
        call(one)
        times.append(time.perf_counter() - start)
    most = torch.tensor([min(times), peak_memory() - resting])
    dist.all_reduce(most, dist.ReduceOp.MAX)
    total = torch.tensor(received.bytes)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return {
        "atoms": 8 * cells[0] * cells[1] * cells[2], "s": float(most[0]), "GB": float(most[1]) / 1e9,
        "MB moved": float(total) / 1e6, "forces": found["forces"].detach().flatten().tolist() if rank == 0 else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs=3, type=int, default=[16, 2, 4], help="cubic cells of 8 atoms")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cells = tuple(options.cells)
    if options.one:
        row = measure(options.one, cells, options.layers, options.channels)
        if row["forces"] is not None:
            print(json.dumps(row), flush=True)
        return
    print("{:<20} {:>5} {:>7} {:>8} {:>12} {:>14} {:>12}".format(
        "", "ranks", "atoms", "s", "GB a rank", "MB received", "forces off"
    ))  # fmt: skip
    reference: torch.Tensor | None = None
    for mode, ranks in (("fairchem", 1), *((mode, options.ranks) for mode in MODES)):
        model = ["--layers", str(options.layers), "--channels", str(options.channels)]
        row = torchrun.run(__file__, ranks, ["--one", mode, *model, "--cells", *map(str, cells)])
        if isinstance(row, str):
            print(f"{mode:<20} {ranks:>5} failed: {row[:100]}", flush=True)
            continue
        forces = torch.tensor(row["forces"])
        reference = forces if reference is None else reference
        off = float((forces - reference).abs().max() / reference.abs().max()) if len(forces) == len(reference) else 1.0
        print(
            f"{mode:<20} {ranks:>5} {row['atoms']:>7} {row['s']:>8.2f} {row['GB']:>12.3f} {row['MB moved']:>14.1f} "
            f"{off:>12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
