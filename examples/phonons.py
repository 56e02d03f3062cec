"""Phonons of silicon by phonopy: forces of a displaced supercell come from a distributed calculator.

pip install phonopy
python examples/phonons.py
torchrun --nproc-per-node 2 examples/phonons.py
"""

import os

import torch.distributed as dist
from ase import Atoms
from ase.build import bulk
from chgnet.model.dynamics import CHGNetCalculator
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

import distcompile

if "RANK" in os.environ:  # under torchrun
    dist.init_process_group("gloo")

cell = bulk("Si", "diamond", a=5.46, cubic=True)
calculator = distcompile.distribute(CHGNetCalculator(use_device="cpu"))


def forces(displaced):
    """Of a supercell of phonopy's, eV/A."""
    atoms = Atoms(displaced.symbols, positions=displaced.positions, cell=displaced.cell, pbc=True)
    atoms.calc = calculator
    return atoms.get_forces()


unit = PhonopyAtoms(
    symbols=cell.get_chemical_symbols(), cell=cell.cell[:], scaled_positions=cell.get_scaled_positions()
)
phonon = Phonopy(unit, supercell_matrix=[2, 2, 2])
phonon.generate_displacements(distance=0.03)  # the same on all ranks
phonon.forces = [forces(displaced) for displaced in phonon.supercells_with_displacements]
phonon.produce_force_constants()

acoustic, optical = (phonon.get_frequencies([0.0, 0.0, 0.0])[at] for at in (0, -1))
phonon.run_mesh([8, 8, 8])
phonon.run_thermal_properties(temperatures=[300])
heat_capacity = phonon.get_thermal_properties_dict()["heat_capacity"][0]
if distcompile.is_first():
    print(f"at Gamma: acoustic {abs(acoustic):.1f}, optical {optical:.1f} THz (measured: 0, 15.5)")
    print(f"heat capacity at 300 K: {heat_capacity / 2:.1f} J/(K mol) (measured: 19.8)")
if dist.is_initialized():
    dist.destroy_process_group()
