"""One process: the stock model beside ours, time and memory per atom against the number of atoms.

    python benchmarks/single.py --models chgnet mace:medium --cells 3 5 --modes stock eager kernels --constant 5.64

Rocksalt MgO with displaced atoms, float32, energy, forces and stress; with ``--constant 5.64`` as thin as NaCl, which
has 40 edges within 6 A where MgO (4.21, the default) has 97. Every mode runs in a process of its own, from the smallest
size to the last that memory holds (memory is the growth of the resident set over the resting process).
Modes: ``stock`` (the package, eager), ``compile`` (the stock model under torch.compile), ``package`` (the package's own
fastest path: symmetrix-xl for MACE, neighbour list included, if it is installed; the compiled modes of NequIP and
Allegro; fairchem's fast backend under torch.compile), ``eager`` (ours, tiled), ``kernels`` (ours, component code),
``tables`` (kernels, radial functions in tables with an error of 1e-6), ``inductor`` (ours, regions compiled by torch).
matgl takes its Warp kernels where nvalchemi-toolkit-ops is installed.
The last column is the part of the time for which the mode's matrix products alone, those computed again too, would keep
this machine busy at its peak, what one large product reaches: near 100 %, they bound the speed. Those of kernels are
counted where the same program runs operator by operator. Writes a table and, with --plot, a picture.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

MODES = ("stock", "compile", "package", "eager", "kernels", "tables", "inductor")
RADIAL_ERROR = 1e-6

ENOUGH = 60.0
"""Seconds after which an evaluation is not repeated."""


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to evaluate a model."""

    prepare: Callable[[Any], tuple[Any, ...]]
    """What it is given for a structure."""
    call: Callable[..., Any]
    copies: int = 1
    """How often the structure is evaluated in a call."""
    by_operators: Callable[[], Callable[..., Any]] | None = None
    """Makes the same operator by operator, where `call` does not run operators that can be counted."""


def way(name: str, mode: str, example: Any) -> Way:
    """A model by its name in tests/zoo.py in one of the modes."""
    import packages

    import distcompile

    if mode == "package":
        return packages.fastest(name)
    case = stock_case(name)
    model = case.model.float().eval()
    model.requires_grad_(False)

    def prepare(atoms: Any) -> tuple[Any, ...]:
        return in_single_precision(case.graph(atoms))

    def stock(*args: Any) -> Any:
        return model(*args, **case.kwargs)

    def ours(lowering: Any) -> Any:
        options = {"model_kwargs": case.kwargs, "validate": False, "lowering": lowering}
        error = RADIAL_ERROR if mode == "tables" else None
        return distcompile.compile(model, prepare(example), radial_error=error, **options)

    if mode in ("stock", "compile"):
        return Way(prepare, torch.compile(stock) if mode == "compile" else stock)
    if mode in ("kernels", "tables"):
        return Way(prepare, ours("kernels"), by_operators=lambda: ours("eager"))
    return Way(prepare, ours(mode))


def measure(name: str, sizes: list[int], mode: str, threads: int, constant: float) -> Iterator[dict[str, Any]]:
    """Run in a process of its own: seconds and bytes of one evaluation of each size."""
    from distcompile.runtime.execution.memory import available

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    small = rocksalt((2, 2, 2), constant)
    start = time.perf_counter()
    this = way(name, mode, small)
    this.call(*this.prepare(small))  # includes what torch.compile does at a first call
    prepared = time.perf_counter() - start
    torch.set_num_threads(1)  # products are counted in the thread that asks for them
    counted = this.by_operators() if this.by_operators else this.call
    with Products() as products:
        counted(*this.prepare(small))
    torch.set_num_threads(threads)
    per_atom = 0.0
    for cells in sorted(sizes):
        atoms = 8 * cells**3
        if mode in ("stock", "compile") and per_atom * atoms > 0.9 * (available() or math.inf):
            return  # ours refuses by itself what does not fit
        args = this.prepare(rocksalt((cells, cells, cells), constant))
        resting = at_rest()
        times = []
        while len(times) < 3 and sum(times) < ENOUGH:
            start = time.perf_counter()
            this.call(*args)
            times.append(time.perf_counter() - start)
        of_one = min(times) / this.copies
        per_atom = (peak_memory() - resting) / atoms / this.copies
        operations = products.count / 64 / this.copies * atoms  # of 64 atoms, which have as many neighbours each
        yield {
            "model": name, "mode": mode, "atoms": atoms, "prepare s": prepared, "ms/atom": 1e3 * of_one / atoms,
            "MB/atom": per_atom / 1e6,
            "products": operations / of_one / _fastest_product() if operations else math.nan,
        }  # fmt: skip


class Products(TorchDispatchMode):
    """Counts the floating-point operations of matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.count += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def _fastest_product() -> float:
    """Operations a second that a large product of matrices in float32 reaches on this machine's threads."""
    n, times = 2048, []
    a = torch.rand(n, n)
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def stock_case(name: str) -> Any:
    """A stock model by its name in tests/zoo.py, as ``chgnet`` or ``mace:medium``."""
    import zoo

    function, *arguments = name.split(":")
    return zoo.chgnet(double=False) if function == "chgnet" else getattr(zoo, function)(*map(_number, arguments))


def _number(text: str) -> Any:
    return int(text) if text.isdigit() else text


def rocksalt(cells: tuple[int, int, int], constant: float = 4.21) -> Any:
    """MgO with displaced atoms; the edge of its cubic cell in A."""
    from ase.build import bulk

    atoms = bulk("MgO", "rocksalt", a=constant, cubic=True).repeat(cells)
    atoms.rattle(0.05, seed=1)
    return atoms


def in_single_precision(graph: Any) -> tuple[Any, ...]:
    """What a model is called with, in single precision."""

    from distcompile.ir.tree import flatten

    leaves, tree = flatten(graph)
    narrow = [leaf.tensor.float() if leaf.tensor.dtype == torch.float64 else leaf.tensor for leaf in leaves]
    found = tree.unflatten(
        [n.detach().requires_grad_(leaf.tensor.requires_grad) for n, leaf in zip(narrow, leaves, strict=True)]
    )
    return found if isinstance(found, tuple) else (found,)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def at_rest() -> int:
    """Bytes of this process as it rests; its peak counts from now on."""
    ctypes.CDLL(None).malloc_trim(0)  # what smaller sizes have left is not resting
    found = resident()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak of the resident set
    return found


def peak_memory() -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["chgnet", "mace:medium", "matgl:TensorNet"])
    parser.add_argument("--cells", nargs="+", type=int, default=[3, 5], help="n x n x n cubic cells of 8 atoms")
    parser.add_argument("--modes", nargs="+", default=["stock", "eager", "kernels"], choices=MODES)
    parser.add_argument("--constant", type=float, default=4.21, help="edge of the cubic cell, A")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        for row in measure(options.one[0], options.cells, options.one[1], options.threads, options.constant):
            print(json.dumps(row), flush=True)
        return
    rows = []
    titles = ("model", "atoms", "mode", "ms/atom", "MB/atom", "faster", "leaner", "prepare s", "products")
    print("{:<18} {:>7} {:<9} {:>8} {:>8} {:>7} {:>7} {:>10} {:>8}".format(*titles))
    for name in options.models:
        baseline: dict[int, dict[str, Any]] = {}
        for mode in options.modes:
            settings = ["--threads", str(options.threads), "--constant", str(options.constant)]
            command = [sys.executable, __file__, *settings, "--one", name, mode, "--cells"]
            done = subprocess.run([*command, *map(str, options.cells)], capture_output=True, text=True, check=False)
            for row in [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"')]:
                rows.append(row)
                stock = baseline.setdefault(row["atoms"], row)
                faster, leaner = stock["ms/atom"] / row["ms/atom"], stock["MB/atom"] / max(row["MB/atom"], 1e-9)
                print(
                    f"{name:<18} {row['atoms']:>7} {mode:<9} {row['ms/atom']:>8.3f} {row['MB/atom']:>8.3f} "
                    f"{faster:>6.1f}x {leaner:>6.1f}x {row['prepare s']:>10.1f} {row['products']:>8.0%}",
                    flush=True,
                )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
                print(f"{name:<18} {'':>7} {mode:<9} {reason[:80]}", flush=True)
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory per atom against the number of atoms."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, quantity in zip(axes, ("ms/atom", "MB/atom"), strict=True):
        for name, mode in dict.fromkeys((r["model"], r["mode"]) for r in rows):
            line = [r for r in rows if (r["model"], r["mode"]) == (name, mode)]
            axis.plot([r["atoms"] for r in line], [r[quantity] for r in line], "o-", label=f"{name} {mode}")
        axis.set(xlabel="atoms", ylabel=quantity, xscale="log", yscale="log")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
