"""Packages of models as others write them: each makes its graph object of ASE's atoms in a way of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

CUTOFF = 3.7


class Model(torch.nn.Module):
    """Pairs of atoms repel each other by their species; energies of atoms saturate."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.species = torch.nn.Parameter(torch.rand(10, 4, generator=generator, dtype=torch.float64) + 0.5)

    def forward(self, graph: dict[str, Any]) -> dict[str, torch.Tensor]:
        positions = graph["pos"].detach().requires_grad_()
        strain = torch.zeros(3, 3, dtype=torch.float64).requires_grad_()
        first, second = graph["edges"]
        vectors = positions[second] - positions[first] + graph["shift"]
        vectors = vectors + vectors @ (strain + strain.T) / 2
        lengths = vectors.norm(dim=1)
        features = self.species[graph["type"]]
        pairs = (features[first] * features[second]).sum(1) * (1 - lengths / CUTOFF) ** 2
        energies = torch.tanh(0.1 * torch.zeros_like(positions[:, 0]).index_add(0, first, pairs))
        energy = energies.sum()
        forces, virial = torch.autograd.grad(energy, [positions, strain])
        return {
            "energy": energy.detach() / graph["n"],
            "forces": -forces,
            "virial": virial,
            "energies": energies.detach(),
        }


class Package(Calculator):
    """Calls the model with what `edges` finds: (first, second, images) of all edges."""

    implemented_properties = ["energy", "energies", "forces", "stress"]  # noqa: RUF012  as ASE declares it

    def __init__(self, edges: Callable[[Atoms], tuple[np.ndarray, np.ndarray, np.ndarray]], change: Any = None) -> None:
        super().__init__()
        self.model, self.edges, self.change = Model(), edges, change
        self.made = 0
        """Graph objects that the package made."""

    def graph(self, atoms: Atoms) -> dict[str, Any]:
        self.made += 1
        first, second, images = self.edges(atoms)
        shift = torch.tensor(images, dtype=torch.float64) @ torch.tensor(atoms.cell.array)
        graph = {
            "pos": torch.tensor(atoms.positions), "type": torch.tensor(atoms.numbers % 10),
            "edges": torch.tensor(np.stack([first, second])), "shift": shift, "n": torch.tensor(float(len(atoms))),
        }  # fmt: skip
        return graph if self.change is None else self.change(graph, atoms)

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        result = self.model(self.graph(atoms))
        self.results = {
            "energy": float(result["energy"]) * len(atoms), "forces": result["forces"].numpy(),
            "energies": result["energies"].numpy(),
        }  # fmt: skip
        if atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(result["virial"].numpy() / atoms.get_volume())


def within(cutoff: float) -> Callable[[Atoms], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs within a distance."""
    return lambda atoms: neighbor_list("ijS", atoms, cutoff)
