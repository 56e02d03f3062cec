"""Exactness through time and the time outside of the compiled call, for CHGNet and MACE in float64.

    python benchmarks/dynamics.py            # NVE, NPT, relaxation of a cell, a hot liquid, overhead
    python benchmarks/dynamics.py mace       # one model

Every run is made with the stock calculator, on 1 rank and on 3 virtual ranks; differences are to the stock run.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import structures
import zoo
from springs import SpringCalculator

import distcompile
from distcompile import LocalWorld
from distcompile.app.dynamics import Ensemble, Md, Optimizer, Output, Relaxation, relax, run_md
from distcompile.calculators.calculator import distribute

RANKS = (0, 1, 3)
"""0 is the stock calculator."""
Make = Callable[[], Any]


@contextlib.contextmanager
def calculators(name: str) -> Iterator[Make]:
    """A function that makes a stock calculator in float64."""
    if name == "chgnet":
        with zoo.chgnet_calculator() as make:
            yield make
    elif name == "mace":
        from mace.calculators import MACECalculator

        with tempfile.TemporaryDirectory() as folder:
            torch.save(zoo.mace().model, f"{folder}/small.model")
            yield lambda: MACECalculator(model_paths=f"{folder}/small.model", default_dtype="float64")
    else:
        yield SpringCalculator


class Bench:
    """One calculator for every number of ranks, compiled once."""

    def __init__(self, make: Make) -> None:
        self._calculators = {n: distribute(make(), world=LocalWorld(n)) if n else make() for n in RANKS}

    def atoms(self, ranks: int) -> Atoms:
        """15 atoms of MgO."""
        atoms = structures.crystal((2, 1, 1))
        atoms.calc = self._calculators[ranks]
        return atoms

    def trajectory(self, ranks: int, how: Md) -> tuple[np.ndarray, np.ndarray, Atoms]:
        """Positions and total energies at every step, and the structure at the end."""
        atoms = self.atoms(ranks)
        frames: list[np.ndarray] = []
        energies: list[float] = []

        def note(step: int) -> None:
            frames.append(atoms.positions.copy())
            energies.append(float(atoms.get_total_energy()))

        run_md(atoms, how, Output(), note)
        return np.array(frames), np.array(energies), atoms

    def compare(self, title: str, how: Md) -> None:
        """Print how far trajectories are apart, and the drift of the energy."""
        stock, energies, at_end = self.trajectory(0, how)
        moved = np.abs(stock[-1] - stock[0]).max()
        print(f"{title}: {how.steps} steps, atoms move up to {moved:.2f} A, total energy changes by")
        print(f"  stock   {energies[-1] - energies[0]:+.9f} eV")
        for ranks in RANKS[1:]:
            frames, found, atoms = self.trajectory(ranks, how)
            apart = np.abs(frames - stock).max(axis=(1, 2))
            cell = np.abs(atoms.cell.array - at_end.cell.array).max()
            print(
                f"  {ranks} rank{'s' * (ranks > 1)} {found[-1] - found[0]:+.9f} eV; positions differ by "
                f"{apart.max():.1e} A (in the first 100 steps {apart[:101].max():.1e}), cell by {cell:.1e} A",
                flush=True,
            )

    def relaxation(self) -> None:
        """Print steps and cells of a relaxation with a cell filter."""
        how = Relaxation(Optimizer.fire, fmax=0.05, cell=True, steps=60)
        cells = []
        for ranks in RANKS:
            atoms = self.atoms(ranks)
            converged, steps = relax(atoms, how, Output(), lambda _: None)
            cells.append(atoms.cell.array)
            apart = np.abs(cells[-1] - cells[0]).max()
            print(
                f"relaxation, {ranks or 'stock'}: {steps} steps, converged {converged}, cell differs by {apart:.1e} A"
            )

    def overhead(self, atoms: Atoms, steps: int) -> None:
        """Print the time of a step on one rank, and of it what is spent outside of the compiled call."""
        atoms.calc = self._calculators[1]
        inside = 0.0
        call = distcompile.DistributedModel.__call__

        def timed(model: Any, *graph: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            result = call(model, *graph)
            inside += time.perf_counter() - start
            return result

        distcompile.DistributedModel.__call__ = timed  # type: ignore[method-assign]
        calculate, calculator = atoms.calc.calculate, 0.0

        def calculated(*args: Any, **options: Any) -> None:
            nonlocal calculator
            start = time.perf_counter()
            calculate(*args, **options)
            calculator += time.perf_counter() - start

        atoms.calc.calculate = calculated
        start = time.perf_counter()
        run_md(atoms, Md(steps=steps), Output(), lambda _: None)
        calls = steps + 1
        step = (time.perf_counter() - start) / calls
        distcompile.DistributedModel.__call__ = call  # type: ignore[method-assign]
        atoms.calc.calculate = calculate
        print(
            f"a step of {len(atoms)} atoms: {1e3 * step:.1f} ms; compiled call {1e3 * inside / calls:.1f} ms, "
            f"calculator of the package (neighbours, graph) {1e3 * (calculator - inside) / calls:.1f} ms, integrator "
            f"and guards {1e3 * (step - calculator / calls):.2f} ms"
        )


def main(names: list[str]) -> None:
    """All measurements, for models by name."""
    for name in names:
        print(f"== {name}")
        with calculators(name) as make:
            bench = Bench(make)
            warm = 50.0 if name == "mace" else 600.0  # random weights do not keep atoms apart
            bench.compare(f"NVE at {warm:.0f} K", Md(steps=200, temperature=warm))
            bench.compare(f"NPT at {warm:.0f} K", Md(Ensemble.npt, steps=50, temperature=warm, pressure=1.0))
            if name != "mace":
                bench.relaxation()
                bench.compare("hot liquid, NVE from 5000 K", Md(steps=500, temperature=5000.0))
            bench.overhead(structures.crystal((2, 1, 1)), 50)
            bench.overhead(structures.crystal((9, 9, 8)), 2)


if __name__ == "__main__":
    main(sys.argv[1:] or ["springs", "mace", "chgnet"])
