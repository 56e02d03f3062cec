"""A calculator as users write them: an ASE calculator around a module of their own, in float64.

Copied into a folder, it is also the file that the command line is given (``springs.py:SpringCalculator``).
"""

import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

CUTOFF = 3.4


class Springs(torch.nn.Module):
    """Holds oxides together: metal and oxygen attract each other (Morse), like atoms repel; smooth at the cutoff."""

    def __init__(self):
        super().__init__()
        self.depth = torch.nn.Parameter(torch.tensor(0.35, dtype=torch.float64))
        self.length = torch.nn.Parameter(torch.tensor(2.2, dtype=torch.float64))

    def forward(self, graph):
        positions = graph["positions"].clone().requires_grad_()
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        vectors = vectors + vectors @ (strain + strain.T) / 2
        lengths = vectors.norm(dim=-1)
        decay = torch.exp(-1.6 * (lengths - self.length))
        unlike = (graph["oxygen"][sender] != graph["oxygen"][receiver]).double()
        pairs = unlike * ((1 - decay) ** 2 - 1) + (1 - unlike) * decay
        edges = self.depth * pairs * (1 - (lengths / CUTOFF) ** 2).clamp(min=0) ** 3
        energies = torch.zeros_like(positions[:, 0]).index_add(0, receiver, edges)
        energy = energies.sum()
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain])
        return {"energy": energy.detach(), "forces": -from_positions, "virial": from_strain}


class SpringCalculator(Calculator):
    """Energy, forces, and a stress where there is a cell."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  as ASE declares it

    def __init__(self):
        super().__init__()
        self.model = Springs()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        unknown = set(atoms.symbols) - {"Mg", "O"}
        if unknown:
            raise KeyError(unknown.pop())
        receiver, sender, shifts = neighbor_list("ijS", atoms, CUTOFF)
        result = self.model(
            {
                "oxygen": torch.tensor(atoms.numbers == 8),
                "positions": torch.tensor(atoms.positions),
                "cell": torch.tensor(atoms.cell.array),
                "edge_index": torch.stack([torch.tensor(sender), torch.tensor(receiver)]),
                "shifts": torch.tensor(shifts, dtype=torch.float64),
            }
        )
        self.results = {"energy": float(result["energy"]), "forces": result["forces"].numpy()}
        if atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(result["virial"].numpy() / atoms.get_volume())
