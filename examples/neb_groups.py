"""A nudged elastic band whose images are evaluated side by side, each by a group of ranks.

torchrun --nproc-per-node 2 examples/neb_groups.py                     # two images, one rank each
torchrun --nproc-per-node 8 examples/neb_groups.py                     # two images, four ranks each
"""

import torch
import torch.distributed as dist
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.mep import NEB
from ase.optimize import FIRE
from chgnet.model.dynamics import CHGNetCalculator

import distcompile

IMAGES = 2  # between the two ends; as many groups of ranks
dist.init_process_group("gloo")
ranks = dist.get_world_size() // IMAGES  # of a group
groups = [dist.new_group(list(range(i * ranks, (i + 1) * ranks))) for i in range(IMAGES)]
mine = dist.get_rank() // ranks


class Groups:
    """What ASE asks of processes that have an image each."""

    rank, size = mine, IMAGES

    def sum(self, value):
        total = torch.tensor(value)
        dist.all_reduce(total)
        return float(total)

    def broadcast(self, array, root):
        dist.broadcast(torch.from_numpy(array), src=root * ranks)  # the ranks of a group have the same


# A vacancy in silicon, and the atom that moves into it.
first = bulk("Si", "diamond", a=5.43, cubic=True)
last = first.copy()
last[0].position = first[1].position
del first[1], last[1]

images = [first, *(first.copy() for _ in range(IMAGES)), last]
world = distcompile.ProcessGroupWorld(groups[mine])
calculator = distcompile.distribute(CHGNetCalculator(use_device="cpu"), world=world)
for end in (first, last):
    end.calc = SinglePointCalculator(end, energy=calculator.get_potential_energy(end))
images[mine + 1].calc = calculator
band = NEB(images, method="improvedtangent", parallel=True, world=Groups())
band.interpolate(mic=True)
FIRE(band, logfile=None).run(fmax=0.1, steps=5)

energies = [float(e) for e in band.energies]
if distcompile.is_first():
    print("eV above the first end:", *(f"{e - energies[0]:.3f}" for e in energies))
dist.destroy_process_group()
