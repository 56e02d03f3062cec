"""Frequencies of vibrations from the exact second derivatives of a pretrained model, instead of small displacements.

python examples/vibrations.py
torchrun --nproc-per-node 2 examples/vibrations.py
"""

import os

import torch.distributed as dist
from ase.build import bulk
from ase.vibrations import VibrationsData
from chgnet.model.dynamics import CHGNetCalculator

import distcompile

if "RANK" in os.environ:  # under torchrun
    dist.init_process_group("gloo")

atoms = bulk("Si", "diamond", a=5.43, cubic=True)
atoms.calc = distcompile.distribute(CHGNetCalculator(use_device="cpu"))
# Frequencies are of a structure at rest. This one is, by symmetry; relax others first.

hessian = distcompile.hessian(atoms.calc, atoms)  # eV/A^2, [8, 3, 8, 3], whole on every rank; a bar on a terminal
vibrations = VibrationsData(atoms, hessian.numpy())
frequencies = vibrations.get_frequencies()  # 1/cm; imaginary where the structure is not at rest

if distcompile.is_first():
    print(f"sum rule {hessian.sum(2).abs().max():.0e} eV/A^2")
    print(f"{len(frequencies)} modes, highest {frequencies[-1].real:.0f} 1/cm (measured: 520)")
    print(vibrations.tabulate())
if dist.is_initialized():
    dist.destroy_process_group()
