"""A training step on energies and forces with the model divided over ranks; gradients of weights are whole on each.

python examples/training_step.py
torchrun --nproc-per-node 2 examples/training_step.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn

import distcompile

if "RANK" in os.environ:
    dist.init_process_group("gloo")


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


torch.manual_seed(0)  # the same weights and the same data on every rank
positions = torch.rand(60, 3, dtype=torch.float64) * 6
near = (positions[:, None] - positions).norm(dim=2) < 2.5
graph = {"positions": positions, "edge_index": (near & ~torch.eye(60, dtype=torch.bool)).nonzero().T.contiguous()}
target = {"energy": torch.tensor(-3.0, dtype=torch.float64), "forces": torch.zeros(60, 3, dtype=torch.float64)}

model = Network().train()
world = None if dist.is_initialized() else distcompile.LocalWorld(2)
compiled = distcompile.compile(model, graph, world=world)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
for step in range(20):
    optimizer.zero_grad()
    found = compiled(graph)
    loss = sum(((found[name] - target[name]) ** 2).mean() for name in target)
    loss.backward()
    optimizer.step()
    if distcompile.is_first() and step % 5 == 4:
        print(f"step {step}: loss {loss.item():.5f}")
if dist.is_initialized():
    dist.destroy_process_group()
