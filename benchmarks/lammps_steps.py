"""LAMMPS with a distributed calculator, beside ASE with the stock one: 100 steps of NVE, and the time of a step.

    python benchmarks/lammps_steps.py --models chgnet mace --ranks 1 2 4 --cells 2        # beside ASE, exactness
    python benchmarks/lammps_steps.py --models mace --ranks 1 2 --cells 6 --alone         # LAMMPS alone, for its time

ASE's velocity Verlet and LAMMPS's `fix nve` move the same rocksalt MgO, from the same positions at rest. Printed are
the largest differences after the last step: positions (A), forces (eV/A, beside the largest force), energy (eV an
atom), the six pressures (GPa, beside the largest); then milliseconds of a step, of steps that follow the first fifth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from graphs import calculator

import distcompile
from distcompile import lammps

MASSES = {"Mg": 24.305, "O": 15.999}


def structure(cells: int) -> Any:
    atoms = bulk("MgO", "rocksalt", 4.21, cubic=True).repeat(cells)
    atoms.rattle(0.1, seed=1)
    atoms.wrap()
    atoms.set_masses([MASSES[symbol] for symbol in atoms.get_chemical_symbols()])
    return atoms


def by_ase(name: str, cells: int, steps: int) -> dict[str, Any]:
    atoms = structure(cells)
    atoms.calc = calculator(name)
    md = VelocityVerlet(atoms, units.fs)
    md.run(steps // 5)
    before = time.perf_counter()
    md.run(steps - steps // 5)
    seconds = time.perf_counter() - before
    return {
        "positions": atoms.positions,
        "forces": atoms.get_forces(),
        "energy": atoms.get_potential_energy(),
        "pressures": -atoms.get_stress(include_ideal_gas=True) / units.GPa,
        "cell": atoms.cell.array,
        "ms": 1e3 * seconds / (steps - steps // 5),
    }


def in_lammps(name: str, cells: int, steps: int) -> None:
    """Run by mpiexec: prints what `by_ase` returns, as JSON."""
    atoms, lmp = structure(cells), lammps.instance(["-log", "none", "-screen", "none"])
    x, y, z = atoms.cell.lengths()
    lmp.commands_string(
        f"units metal\natom_style atomic\nregion box block 0 {x} 0 {y} 0 {z}\ncreate_box 2 box\n"
        "mass 1 24.305\nmass 2 15.999\nthermo_style custom step pe press"
    )
    types = [1 + list(MASSES).index(symbol) for symbol in atoms.get_chemical_symbols()]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())
    lammps.attach(lmp, distcompile.distribute(calculator(name), lowering="kernels"), list(MASSES))
    lmp.commands_string(f"fix move all nve\ntimestep 0.001\nrun {steps // 5}")
    before = time.perf_counter()
    lmp.command(f"run {steps - steps // 5} pre no")
    seconds = time.perf_counter() - before
    found = {
        **{
            key: np.array(lmp.gather_atoms(of, 1, 3)).reshape(-1, 3).tolist()
            for key, of in (("positions", "x"), ("forces", "f"))
        },
        "energy": lmp.get_thermo("pe"),
        "pressures": [lmp.get_thermo(f"p{k}") * 1e-4 for k in ("xx", "yy", "zz", "yz", "xz", "xy")],
        "ms": 1e3 * seconds / (steps - steps // 5),
    }
    if distcompile.is_first():
        print(json.dumps(found))


def differences(found: dict[str, Any], stock: dict[str, Any]) -> str:
    apart = np.linalg.solve(stock["cell"].T, (np.array(found["positions"]) - stock["positions"]).T).T
    moved = np.abs((apart - np.round(apart)) @ stock["cell"]).max()
    forces = np.abs(np.array(found["forces"]) - stock["forces"]).max()
    pressures = np.abs(np.array(found["pressures"]) - stock["pressures"]).max()
    energy = abs(found["energy"] - stock["energy"]) / len(stock["positions"])
    return (
        f"positions {moved:.1e}, forces {forces:.1e} of {np.abs(stock['forces']).max():.1e}, energy {energy:.1e}, "
        f"pressures {pressures:.1e} of {np.abs(stock['pressures']).max():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["chgnet", "mace"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--alone", action="store_true", help="without ASE's run")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    how = parser.parse_args()
    if how.child:
        in_lammps(how.models[0], how.cells, how.steps)
        return
    for name in how.models:
        print(f"{name}, {8 * how.cells**3} atoms, {how.steps} steps")
        stock = None if how.alone else by_ase(name, how.cells, how.steps)
        if stock:
            print(f"  ASE, stock      {stock['ms']:9.1f} ms a step")
        for ranks in how.ranks:
            child = [sys.executable, "-W", "ignore", __file__, "--child", "--models", name]
            command = [str(Path(sys.prefix) / "bin" / "mpiexec"), "-n", str(ranks), *child]
            command += ["--cells", str(how.cells), "--steps", str(how.steps)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"  LAMMPS, ranks: {ranks} {found['ms']:9.1f} ms a step", differences(found, stock) if stock else "")


if __name__ == "__main__":
    main()
