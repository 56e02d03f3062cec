"""Molecular dynamics with ASE on several ranks: each runs the same script.

    torchrun --nproc-per-node 2 examples/md_torchrun.py

`distcompile run --task md` does the same with checkpoints, and notices ranks that are lost.
"""

import os

import torch.distributed as dist
from ase import units
from ase.build import bulk
from ase.io.trajectory import Trajectory
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from chgnet.model.dynamics import CHGNetCalculator
from numpy.random import RandomState

import distcompile

if "RANK" in os.environ:
    dist.init_process_group("gloo")

atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)
atoms.calc = distcompile.distribute(CHGNetCalculator(use_device="cpu"))
MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=RandomState(0))  # a fixed seed: the same on every rank

dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
if distcompile.is_first():
    dynamics.attach(Trajectory("md.traj", "w", atoms))  # one rank writes
for _ in dynamics.irun(5):
    energy = atoms.get_total_energy()  # on every rank: an evaluation is a meeting of all
    if distcompile.is_first():
        print(f"step {dynamics.nsteps}: {energy:.5f} eV, {atoms.get_temperature():.0f} K")
if dist.is_initialized():
    dist.destroy_process_group()
