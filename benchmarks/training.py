"""One step of training, stock beside ours: time, memory and traffic of loss and gradients with forces in the loss.

    python benchmarks/training.py --models mace:medium chgnet --cells 4 4 4 --modes stock eager kernels --ranks 1 2

Rattled rocksalt, the loss of energy and forces, the gradient of every parameter. Every figure comes from processes of
its own, started by torchrun, with one thread each; a step is the slowest rank's, the best of several. Modes: ``stock``
(``loss(model(graph)).backward()``, on one process), ``eager`` and ``kernels`` (`distcompile.training_step` with these
lowerings), ``outside`` (``backward`` through what `distcompile.compile` made, with kernels). Memory is the growth of
the resident set over the resting process. ``apart`` is the largest difference of a gradient from the stock model's, by
the largest gradient. Bytes are what all ranks receive in halo exchanges and reductions.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torchrun
from single import at_rest, in_single_precision, peak_memory, rocksalt, stock_case

MODES = ("stock", "eager", "kernels", "outside")


def measure(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run on every rank of a job: figures of one mode; None on all but the first rank."""
    import torch
    import torch.distributed as dist
    import zoo

    import distcompile
    from distcompile.ir.tree import flatten

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    case = stock_case(options.one[0])
    mode, cells = options.one[1], tuple(options.cells)
    dtype = torch.float64 if options.double else torch.float32
    model = (case.model.double() if options.double else case.model.float()).train()
    kwargs = dict(case.kwargs) | ({"training": True} if options.one[0].startswith("mace") else {})

    def loss(result: Any, targets: Any) -> Any:
        energy, forces = zoo.energy_and_forces(result)
        return ((energy - targets["energy"]) ** 2).mean() / len(forces) + ((forces - targets["forces"]) ** 2).mean()

    def given(size: tuple[int, int, int]) -> tuple[Any, Any]:
        atoms = rocksalt(size, options.constant)
        chance = torch.Generator().manual_seed(1)
        targets = {
            "energy": torch.tensor(-1.0, dtype=dtype),
            "forces": torch.randn(len(atoms), 3, dtype=dtype, generator=chance),
        }
        leaves, tree = flatten(in_single_precision(case.graph(atoms)))
        return tree.unflatten(
            [x.tensor.to(dtype) if x.tensor.is_floating_point() else x.tensor for x in leaves]
        ), targets

    def fresh(args: Any) -> Any:
        leaves, tree = flatten(args)  # models write to the graph objects that they are given
        return tree.unflatten([leaf.tensor.clone() for leaf in leaves])

    def clear() -> None:
        for parameter in model.parameters():
            parameter.grad = None

    small, large = given((2, 2, 2)), given(cells)
    start = time.perf_counter()
    if mode == "stock":

        def step(graph: Any, targets: Any) -> Any:
            value = loss(model(*graph, **kwargs), targets)
            value.backward()
            return value.detach()

    elif mode == "outside":
        compiled = distcompile.compile(model, small[0], model_kwargs=kwargs, lowering="kernels", validate=False)

        def step(graph: Any, targets: Any) -> Any:
            value = loss(compiled(*graph), targets)
            value.backward()
            return value.detach()

    else:
        step = distcompile.training_step(model, loss, *small, model_kwargs=kwargs, lowering=mode, validate=False)
    step(*fresh(small))
    prepared = time.perf_counter() - start
    clear()
    resting = at_rest()
    times = []
    while len(times) < 3 and sum(times) < 60:
        clear()
        args = fresh(large)
        dist.barrier()
        start = time.perf_counter()
        value = step(*args)
        times.append(time.perf_counter() - start)
    mine = torch.tensor([min(times[1:] or times), peak_memory() - resting])
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    n = 8 * math.prod(cells)
    rows = step.stats(*large) if isinstance(step, distcompile.TrainingStep) else []
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    if not first:
        return None
    return {
        "atoms": n, "ms/atom": 1e3 * float(mine[0]) / n, "MB/atom": float(mine[1]) / n / 1e6, "prepare s": prepared,
        "predicted": max((row["peak_memory"] for row in rows), default=math.nan) / n / 1e6,
        "MB/step": sum(row["bytes"] for row in rows) / 1e6,
        "apart": _apart(gradients, float(value), Path(options.keep)),
    }  # fmt: skip


def _apart(gradients: dict[str, Any], loss: float, path: Path) -> float:
    """How far gradients are from those that the first mode of a model wrote, by the largest."""
    import torch

    if not path.exists():
        torch.save((gradients, loss), path)
        return 0.0
    expected, stock_loss = torch.load(path)
    largest = max(float(g.abs().max()) for g in expected.values())
    worst = max(float((gradients[name] - g).abs().max()) for name, g in expected.items()) / largest
    return max(worst, abs(loss - stock_loss) / abs(stock_loss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mace:medium", "chgnet", "matgl:TensorNet"])
    parser.add_argument("--cells", nargs=3, type=int, default=[4, 4, 4], help="cubic cells of 8 atoms")
    parser.add_argument("--constant", type=float, default=5.64, help="edge of the cubic cell, A")
    parser.add_argument("--modes", nargs="+", default=["stock", "eager", "kernels"], choices=MODES)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true", help="float64")
    parser.add_argument("--keep", default="", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torchrun.say(measure(options))
        return
    titles = ("model", "atoms", "mode", "ranks", "ms/atom", "MB/atom a rank", "predicted", "faster", "leaner", "apart")
    print("{:<18} {:>6} {:<8} {:>5} {:>8} {:>14} {:>9} {:>7} {:>7} {:>8} {:>8} {:>9}".format(
        *titles, "MB/step", "prepare s"
    ))  # fmt: skip
    for name in options.models:
        stock: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            keep = stack.enter_context(_place())
            for mode, ranks in [(m, r) for m in options.modes for r in (options.ranks if m != "stock" else [1])]:
                shared = ["--cells", *map(str, options.cells), "--constant", str(options.constant), "--keep", keep]
                shared += ["--threads", str(options.threads)] + ["--double"] * options.double
                row = torchrun.run(__file__, ranks, ["--one", name, mode, *shared])
                if isinstance(row, str):
                    print(f"{name:<18} {'':>6} {mode:<8} {ranks:>5} {row[:80]}", flush=True)
                    continue
                stock = stock or row
                print(
                    f"{name:<18} {row['atoms']:>6} {mode:<8} {ranks:>5} {row['ms/atom']:>8.3f} {row['MB/atom']:>14.3f} "
                    f"{row['predicted']:>9.3f} {stock['ms/atom'] / row['ms/atom']:>6.1f}x "
                    f"{stock['MB/atom'] / max(row['MB/atom'], 1e-9):>6.1f}x {row['apart']:>8.1e} "
                    f"{row['MB/step']:>8.1f} {row['prepare s']:>9.1f}",
                    flush=True,
                )


@contextlib.contextmanager
def _place() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/gradients.pt"


if __name__ == "__main__":
    sys.exit(main())
