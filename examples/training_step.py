"""Train on energies and forces: each structure is divided over a group of ranks, and groups take other structures.

python examples/training_step.py                                        # one process
torchrun --nproc-per-node 2 examples/training_step.py                   # every structure on both ranks
torchrun --nproc-per-node 4 examples/training_step.py --group 2         # two structures at a time, on two ranks each
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

import distcompile

parser = argparse.ArgumentParser()
parser.add_argument("--group", type=int, help="ranks that share a structure; all by default")
options = parser.parse_args()

world, structures_at_once, my_turn = distcompile.LocalWorld(1), 1, 0
if "RANK" in os.environ:
    dist.init_process_group("gloo")
    size = options.group or dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size() // size, size), mesh_dim_names=("structures", "rows"))
    world = distcompile.ProcessGroupWorld(mesh.get_group("rows"))
    structures_at_once, my_turn = mesh["structures"].size(), mesh["structures"].get_local_rank()


class Network(nn.Module):
    """Energy and forces of neighbours; forces keep their graph, so that a loss can be taken of them."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)).double()

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        positions = graph["positions"].clone().requires_grad_()
        receiver, sender = graph["edge_index"]
        lengths = (positions[receiver] - positions[sender]).norm(dim=1, keepdim=True)
        energies = torch.zeros_like(positions[:, :1])
        energy = energies.index_add(0, receiver, self.pair(lengths) * (1 - lengths / 2.5) ** 2).sum()
        return {"energy": energy, "forces": -torch.autograd.grad(energy, positions, create_graph=True)[0]}


def structure(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Atoms at random places, and what their energy (eV) and forces (eV/A) are to be: the same on every rank."""
    chance = torch.Generator().manual_seed(seed)
    positions = torch.rand(60, 3, dtype=torch.float64, generator=chance) * 6
    near = (positions[:, None] - positions).norm(dim=2) < 2.5
    edges = (near & ~torch.eye(60, dtype=torch.bool)).nonzero().T.contiguous()
    targets = {"energy": torch.tensor(-3.0, dtype=torch.float64), "forces": torch.zeros(60, 3, dtype=torch.float64)}
    return {"positions": positions, "edge_index": edges}, targets


def loss(result: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean squares of what is off."""
    return sum(((result[name] - targets[name]) ** 2).mean() for name in targets)


torch.manual_seed(0)  # the same weights on every rank
model = Network().train()
step = distcompile.training_step(model, loss, *structure(0), world=world)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
for epoch in range(10):
    total = torch.zeros((), dtype=torch.float64)
    for first in range(0, 8, structures_at_once):
        optimizer.zero_grad()
        total += step(*structure(first + my_turn))  # gradients are whole on every rank of a group
        if structures_at_once > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad, group=mesh.get_group("structures"))
                parameter.grad /= structures_at_once
        optimizer.step()
    if structures_at_once > 1:
        dist.all_reduce(total, group=mesh.get_group("structures"))
    if distcompile.is_first() and epoch % 3 == 0:
        print(f"epoch {epoch}: loss {total.item() / 8:.5f}")
if dist.is_initialized():
    dist.destroy_process_group()
