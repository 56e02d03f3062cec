"""Compile a model of your own: any module that takes a graph, here a small message-passing network.

python examples/own_model.py
"""

import torch
from torch import nn

import distcompile


class Network(nn.Module):
    """Two rounds of messages; energy, and forces by automatic differentiation inside of the model."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, width)
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width)) for _ in "ab"
        )
        self.readout = nn.Linear(width, 1)
        self.double()

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        positions = graph["positions"].clone().requires_grad_()
        receiver, sender = graph["edge_index"]
        lengths = (positions[receiver] - positions[sender]).norm(dim=1, keepdim=True)
        features = self.embedding(graph["species"])
        for network in self.filters:
            messages = network(lengths) * (1 - lengths / 2.5) ** 2 * features[sender]
            features = features + torch.zeros_like(features).index_add(0, receiver, messages)
        energy = self.readout(torch.tanh(features)).sum()
        return {"energy": energy, "forces": -torch.autograd.grad(energy, positions, create_graph=True)[0]}


def graph(n: int) -> dict[str, torch.Tensor]:
    """Atoms at random places of a box, with their neighbours."""
    positions = torch.rand(n, 3, dtype=torch.float64) * n ** (1 / 3) * 1.5
    near = (positions[:, None] - positions).norm(dim=2) < 2.5
    edges = (near & ~torch.eye(n, dtype=torch.bool)).nonzero().T.contiguous()
    return {"positions": positions, "species": torch.randint(0, 3, (n,)), "edge_index": edges}


torch.manual_seed(0)
model = Network().eval()
compiled = distcompile.compile(model, graph(30), world=distcompile.LocalWorld(4))  # checked against the model
other = graph(200)  # any size, no recompilation
found, expected = compiled(other), model(other)
print(compiled.explain())
for rank in compiled.stats(other):
    print(f"rank {rank['rank']}: {rank['owned']} owned, {rank['halo']} halo, {rank['peak_memory'] / 1e6:.2f} MB")
print(f"largest difference of a force: {(found['forces'] - expected['forces']).abs().max():.1e}")
