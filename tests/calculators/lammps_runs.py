"""Run LAMMPS with a calculator, as users do under mpiexec; print what rank 0 found, as JSON.

python lammps_runs.py (stock | distributed | failing) nve nvt npt
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from ase.build import bulk
from springs import SpringCalculator

import distcompile
from distcompile import lammps

FIXES = {"nve": "nve", "nvt": "nvt temp 500 500 0.1", "npt": "npt temp 500 500 0.1 tri 2e4 2e4 0.5"}
STEPS = 40


class Failing(SpringCalculator):
    """Fails on one rank, in the middle of a run."""

    calls = 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        if self.calls > 3 and (not distcompile.is_first() or lmp.extract_setting("world_size") == 1):
            raise RuntimeError("no more")
        super().calculate(*args, **kwargs)


def structure():
    """A tilted crystal with atoms off their sites."""
    atoms = bulk("MgO", "rocksalt", 4.21, cubic=True).repeat((3, 2, 2))
    atoms.set_cell([[12.63, 0, 0], [0.9, 8.42, 0], [-0.4, 0.7, 8.42]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.wrap()
    atoms.set_masses([24.305 if symbol == "Mg" else 15.999 for symbol in atoms.get_chemical_symbols()])
    return atoms


def made(lmp):
    """Give the structure to an instance."""
    atoms = structure()
    (x, *_), (xy, y, _), (xz, yz, z) = atoms.cell.array
    lmp.commands_string(
        f"clear\nunits metal\natom_style atomic\nregion box prism 0 {x} 0 {y} 0 {z} {xy} {xz} {yz}\n"
        "create_box 2 box\nmass 1 24.305\nmass 2 15.999"
    )
    types = [1 if symbol == "Mg" else 2 for symbol in atoms.get_chemical_symbols()]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())


def run(lmp, calculator, ensemble):
    """Forces, energy and pressures of the first step; positions and energy after the last one."""
    made(lmp)
    lammps.attach(lmp, calculator, ["Mg", "O"])
    lmp.commands_string(f"fix move all {FIXES[ensemble]}\ntimestep 0.001\nthermo_style custom step pe press\nrun 0")
    pressures = [lmp.get_thermo(f"p{k}") for k in ("xx", "yy", "zz", "yz", "xz", "xy")]
    first = {"forces": gathered(lmp, "f"), "energy": lmp.get_thermo("pe"), "pressures": pressures}
    lmp.command(f"run {STEPS}")
    energy, volume = lmp.get_thermo("pe"), lmp.get_thermo("vol")
    return {**first, "positions": gathered(lmp, "x"), "last energy": energy, "volume": volume}


def gathered(lmp, name):
    return np.array(lmp.gather_atoms(name, 1, 3)).reshape(-1, 3).tolist()


if __name__ == "__main__":
    lmp = lammps.instance(["-log", "none", "-screen", "none"])
    kind, *ensembles = sys.argv[1:]
    if kind == "distributed":
        calculator = distcompile.distribute(SpringCalculator())
    else:
        calculator = {"stock": SpringCalculator, "failing": Failing}[kind]()
    found = {}
    for ensemble in ensembles:
        try:
            found[ensemble] = run(lmp, calculator, ensemble)
        except distcompile.RankError as error:
            found[ensemble] = str(error)
    if distcompile.is_first():
        print(json.dumps(found))
