"""Scale an ASE calculator: one line, and the rest of the script stays as it is.

python examples/scale_calculator.py                                    # one process
torchrun --nproc-per-node 2 examples/scale_calculator.py               # two ranks on this machine
"""

import os

import torch.distributed as dist
from ase.build import bulk
from chgnet.model.dynamics import CHGNetCalculator

import distcompile

if "RANK" in os.environ:  # under torchrun
    dist.init_process_group("gloo")

atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True) * (2, 1, 1)
atoms.rattle(0.05, seed=1)  # the same on every rank
atoms.calc = distcompile.distribute(CHGNetCalculator(use_device="cpu"))

energy = atoms.get_potential_energy()  # every rank asks, every rank gets the whole answer
forces = atoms.get_forces()
stress = atoms.get_stress()
moments = atoms.get_magnetic_moments()

if distcompile.is_first():  # one rank prints and writes
    print(
        f"{energy:.4f} eV, largest force {abs(forces).max():.4f} eV/A, {len(moments)} moments, stress {stress.round(4)}"
    )
if dist.is_initialized():
    dist.destroy_process_group()
