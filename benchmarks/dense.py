"""A dense graph with outputs on edges, as of a Hamiltonian: memory, time and traffic of training and of inference.

    python benchmarks/dense.py --task train --cells 6 8 8 --channels 128 --lmax 2          # 3,072 atoms, 574,000 edges
    python benchmarks/dense.py --task infer --cells 13 14 14 --modes kernels               # 20,384 atoms
    python benchmarks/dense.py --task bytes --cells 6 8 8 --ranks 2 8 64                   # nothing is evaluated
    python benchmarks/dense.py --task plan --cells 12 12 12 --ranks 8                      # 1,728 atoms a rank

fairchem's eSEN with edges up to 10 A, and a head that gives every atom and every edge a block of (lmax + 1)^2 by
(lmax + 1)^2 numbers; rattled rocksalt with 187 edges an atom, float32. Modes are `stock`, and ours with `eager` and
`kernels`. ``train``: the loss of all blocks and the gradient of every parameter. ``infer``: blocks stay divided.
``plan``: weak scaling of a training step to 512 ranks as full as the `--ranks` of the graph, on devices by their data
sheets. ``bytes``: what ranks receive in a step, beside the rule of sending the features of both ends of each edge
between ranks once a layer; and other partitions: by coordinates (RCB), and into slabs, in which a rank has the fewest
neighbours.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from typing import Any

import torchrun
from single import at_rest, in_single_precision, peak_memory, rocksalt

CUTOFF = 10.0


def case(options: argparse.Namespace) -> Any:
    """The model and its graphs."""
    import zoo

    return zoo.esen_blocks(options.layers, options.channels, options.lmax, CUTOFF)


def loss(result: Any, targets: Any) -> Any:
    """Of all blocks."""
    return sum((result[name] - targets[name]).abs().mean() for name in targets)


def given(options: argparse.Namespace, cells: tuple[int, int, int]) -> tuple[Any, Any]:
    """A graph and targets."""
    import torch

    (graph,) = in_single_precision(case(options).graph(rocksalt(cells, options.constant)))
    size, chance = (options.lmax + 1) ** 2, torch.Generator().manual_seed(1)
    rows = {"atoms": len(graph.pos), "edges": graph.edge_index.shape[1]}
    return graph, {name: torch.randn(n, size, size, generator=chance) for name, n in rows.items()}


def measure(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run on every rank of a job; None on all but the first."""
    import torch
    import torch.distributed as dist

    import distcompile

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    mode, train = options.one, options.task == "train"
    model = case(options).model.float().train(train)
    model.requires_grad_(train)
    small = given(options, (2, 2, 2))
    start = time.perf_counter()
    if mode == "stock":

        def step(graph: Any, targets: Any) -> Any:
            if not train:
                return model(graph)
            value = loss(model(graph), targets)
            value.backward()
            return value

    elif train:
        step = distcompile.training_step(model, loss, *small, lowering=mode, validate=False)
    else:
        compiled = distcompile.compile(model, small[0], lowering=mode, validate=False, gather=False)

        def step(graph: Any, targets: Any) -> Any:
            return compiled(graph)

    step(*small)
    prepared = time.perf_counter() - start
    graph, targets = given(options, tuple(options.cells))
    if not train:
        targets = None
    resting = at_rest()
    times = []
    while len(times) < 2 and sum(times) < 60:
        model.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        step(graph, targets)
        times.append(time.perf_counter() - start)
    mine = torch.tensor([min(times), peak_memory() - resting])
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    n, first = len(graph.pos), dist.get_rank() == 0
    stats = [] if mode == "stock" else step.stats(graph, targets) if train else compiled.stats(graph)
    dist.destroy_process_group()
    return {
        "atoms": n, "edges": graph.edge_index.shape[1], "s": float(mine[0]), "GB": float(mine[1]) / 1e9,
        "prepare s": prepared, "MB/step": sum(row["bytes"] for row in stats) / 1e6,
    } if first else None  # fmt: skip


def traffic(options: argparse.Namespace) -> None:
    """Bytes of a training step on some numbers of ranks, beside the rule of features by edges, and other partitions."""
    import distcompile
    from distcompile import LocalWorld
    from distcompile.runtime.division.partition import bisect

    model = case(options).model.float().train()
    step = distcompile.training_step(model, loss, *given(options, (2, 2, 2)), lowering="eager", validate=False)
    graph, targets = given(options, tuple(options.cells))
    print(
        f"{'ranks':>5} {'partition':<22} {'halo/owned':>10} {'peers':>6} {'ours MB':>9} {'rule MB':>9} {'ours/rule':>9}"
    )
    for ranks in options.ranks:
        on = step.compiled.on(LocalWorld(ranks))
        stats = on.stats(graph, targets)
        executor, prepared = on.prepared(graph, targets)
        owner = executor.layout(prepared).division.ranks["atoms"]
        halo, peers, cut = _cut(graph, owner, ranks)
        row = 4 * options.channels * (options.lmax + 1) ** 2
        rule = 2 * options.layers * cut * 2 * row  # forward and backward, both ends
        ours = sum(r["bytes"] for r in stats)
        print(
            f"{ranks:>5} {stats[0]['partition']:<22} {halo:>10.2f} {peers:>6} {ours / 1e6:>9.1f} {rule / 1e6:>9.1f} "
            f"{ours / rule:>9.3f}", flush=True,
        )  # fmt: skip
        work = graph.pos.new_ones(len(graph.pos)).double()
        along = graph.pos[:, int(graph.cell[0].norm(dim=1).argmax())]
        slabs = along.argsort().argsort() * ranks // len(along)
        for name, other in (("RCB", bisect(graph.pos, work, ranks)), ("slabs", slabs)):
            halo, peers, _ = _cut(graph, other, ranks)
            print(f"{ranks:>5} {name:<22} {halo:>10.2f} {peers:>6}", flush=True)


def planned(options: argparse.Namespace) -> None:
    """Weak scaling of a training step to many ranks that are not there, each as full as those of the graph."""
    import distcompile
    from distcompile import LocalWorld
    from distcompile.predict.account import work
    from distcompile.predict.planning import DEVICES, Host, weak
    from distcompile.predict.rank_counts import rank_counts

    model = case(options).model.float().train()
    training = distcompile.training_step(model, loss, *given(options, (2, 2, 2)), lowering="eager", validate=False)
    graph, targets = given(options, tuple(options.cells))
    ranks = options.ranks[0]
    executor, prepared = training.compiled.on(LocalWorld(ranks)).prepared(graph, targets)
    division = executor.layout(prepared).division
    counts = rank_counts(executor.running, prepared.sizes, division)
    costs, host = work(executor.running), Host(0.0, 0.0, 0.0)
    print(f"{len(graph.pos)} atoms on {ranks} ranks, {counts.partition.halo_per_atom:.2f} halo rows an atom")
    for device in DEVICES.values():
        print(device.basis)
        alone, *others = weak(device, costs, counts, host, (1, 8, 64, 512))
        for n, found in zip((8, 64, 512), others, strict=True):
            print(
                f"{device.name:<6} {n:>4} ranks: {alone.total / found.total:>5.0%} of the speed of one; step "
                f"{found.total:.3f} s, of it halo {found.halo:.3f}, sums {found.whole:.3f}", flush=True,
            )  # fmt: skip


def _cut(graph: Any, owner: Any, ranks: int) -> tuple[float, int, int]:
    """Halo rows by owned rows, the most ranks that one receives from, and edges between ranks."""
    import torch

    first, second = owner[graph.edge_index[0]], owner[graph.edge_index[1]]
    apart = first != second
    halo = torch.unique(second[apart] * len(owner) + graph.edge_index[0][apart]).numel()
    pairs = torch.unique(first[apart] * ranks + second[apart])
    return halo / len(owner), int(torch.bincount(pairs % ranks).max()), int(apart.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["train", "infer", "bytes", "plan"], default="train")
    parser.add_argument("--cells", nargs=3, type=int, default=[6, 8, 8], help="cubic cells of 8 atoms")
    parser.add_argument("--constant", type=float, default=5.64, help="edge of the cubic cell, A")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--lmax", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--modes", nargs="+", default=["kernels"], choices=["stock", "eager", "kernels"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torchrun.say(measure(options))
        return
    if options.task in ("bytes", "plan"):
        (traffic if options.task == "bytes" else planned)(options)
        return
    print(f"{'mode':<8} {'ranks':>5} {'atoms':>7} {'edges':>9} {'s':>8} {'GB a rank':>9} {'MB/atom':>8} {'MB/step':>8}")
    for mode in options.modes:
        for ranks in options.ranks if mode != "stock" else [1]:
            shared = [
                f"--{name}={getattr(options, name)}" for name in ("task", "constant", "channels", "lmax", "layers")
            ]
            shared += [f"--threads={options.threads}", "--cells", *map(str, options.cells)]
            row = torchrun.run(__file__, ranks, ["--one", mode, *shared])
            if isinstance(row, str):
                print(f"{mode:<8} {ranks:>5} {8 * math.prod(options.cells):>7} {row[:90]}", flush=True)
                continue
            print(
                f"{mode:<8} {ranks:>5} {row['atoms']:>7} {row['edges']:>9} {row['s']:>8.1f} {row['GB']:>9.2f} "
                f"{1e3 * row['GB'] / row['atoms']:>8.2f} {row['MB/step']:>8.1f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
