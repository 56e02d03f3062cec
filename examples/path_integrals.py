"""Path-integral molecular dynamics: i-PI moves the beads, a distributed calculator gives forces over a socket.

pip install ipi
python examples/path_integrals.py
torchrun --nproc-per-node 2 examples/path_integrals.py
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from ase.build import bulk
from ase.calculators.socketio import SocketClient
from ase.io import write
from ase.units import Hartree, kB
from chgnet.model.dynamics import CHGNetCalculator

import distcompile

KELVIN, BEADS, STEPS = 100, 4, 20
INPUT = f"""
<simulation verbosity="quiet">
  <output prefix="out">
    <properties filename="md"> [step, conserved, kinetic_cv, potential] </properties>
  </output>
  <total_steps> {STEPS} </total_steps>
  <prng> <seed> 7 </seed> </prng>
  <ffsocket name="forces" mode="unix"> <address> distcompile-{os.getpid()} </address> </ffsocket>
  <system>
    <initialize nbeads="{BEADS}">
      <file mode="ase"> start.extxyz </file>
      <velocities mode="thermal" units="kelvin"> {KELVIN} </velocities>
    </initialize>
    <forces> <force forcefield="forces"/> </forces>
    <ensemble> <temperature units="kelvin"> {KELVIN} </temperature> </ensemble>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <thermostat mode="pile_g"> <tau units="femtosecond"> 100 </tau> </thermostat>
        <timestep units="femtosecond"> 1.0 </timestep>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


class Ranks:
    """What ASE asks of processes that serve one socket: the first one talks, the others hear what it heard."""

    def __init__(self):
        if "RANK" in os.environ:  # under torchrun
            dist.init_process_group("gloo")
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def broadcast(self, array, root):
        if dist.is_initialized():
            dist.broadcast(torch.from_numpy(array), src=root)


ranks = Ranks()
atoms = bulk("LiH", "rocksalt", a=4.08, cubic=True)
atoms.calc = distcompile.distribute(CHGNetCalculator(use_device="cpu"))

with tempfile.TemporaryDirectory() as folder:
    if ranks.rank == 0:
        write(Path(folder) / "start.extxyz", atoms)
        (Path(folder) / "input.xml").write_text(INPUT)
        server = subprocess.Popen(["i-pi", "input.xml"], cwd=folder, stdout=subprocess.DEVNULL)
        while not Path(f"/tmp/ipi_distcompile-{os.getpid()}").exists() and server.poll() is None:
            time.sleep(0.1)
    SocketClient(unixsocket=f"distcompile-{os.getpid()}", comm=ranks).run(atoms)
    if ranks.rank == 0:
        server.wait()
        kinetic = np.loadtxt(Path(folder) / "out.md")[:, 2] * Hartree / len(atoms)
        classical = 1.5 * kB * KELVIN
        print(f"kinetic energy after {STEPS} steps: {kinetic[-1]:.4f} eV/atom, {classical:.4f} of classical atoms")
if dist.is_initialized():
    dist.destroy_process_group()
