"""Elastic constants from stresses of strained cells; the calculator is distributed, the rest is ASE and NumPy.

python examples/elastic_constants.py
torchrun --nproc-per-node 2 examples/elastic_constants.py
"""

import os

import numpy as np
import torch.distributed as dist
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_strain  # one plus the strain
from ase.units import GPa
from chgnet.model.dynamics import CHGNetCalculator

import distcompile

if "RANK" in os.environ:  # under torchrun
    dist.init_process_group("gloo")

STRAIN = 0.005
atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)  # atoms stay at rest in strained cells, by symmetry
calculator = distcompile.distribute(CHGNetCalculator(use_device="cpu"))


def stress(strain):
    """Of a cell with a strain, in Voigt's order, eV/A^3."""
    strained = atoms.copy()
    strained.set_cell(atoms.cell @ voigt_6_to_full_3x3_strain(strain), scale_atoms=True)
    strained.calc = calculator
    return strained.get_stress()


constants = np.array([(stress(STRAIN * e) - stress(-STRAIN * e)) / (2 * STRAIN * GPa) for e in np.eye(6)])
if distcompile.is_first():
    c11, c12, c44 = constants[0, 0], constants[0, 1], constants[3, 3]
    print(f"C11 {c11:.0f}, C12 {c12:.0f}, C44 {c44:.0f} GPa (measured: 297, 95, 155)")
if dist.is_initialized():
    dist.destroy_process_group()
