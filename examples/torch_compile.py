"""The same compiler as a backend of ``torch.compile``; gradients are taken outside of the model.

python examples/torch_compile.py
"""

import torch
from torch import nn

import distcompile


class Energy(nn.Module):
    """The energy of pairs; leaves forces to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, positions: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        receiver, sender = edge_index
        lengths = (positions[receiver] - positions[sender]).norm(dim=1, keepdim=True)
        return (self.pair(lengths) * (1 - lengths / 2.5) ** 2).sum()


torch.manual_seed(0)
positions = torch.rand(60, 3, dtype=torch.float64) * 6
near = (positions[:, None] - positions).norm(dim=2) < 2.5
edges = (near & ~torch.eye(60, dtype=torch.bool)).nonzero().T.contiguous()
positions.requires_grad_()

model = Energy()
scaled = torch.compile(model, backend="distmlip", options={"world": distcompile.LocalWorld(2)})
energy = scaled(positions, edges)
(gradient,) = torch.autograd.grad(energy, positions)
(expected,) = torch.autograd.grad(model(positions, edges), positions)
print(f"{energy.item():.6f}; largest difference of a force: {(gradient - expected).abs().max():.1e}")
