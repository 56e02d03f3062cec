"""Tiny potentials in plain torch, one for each way that potentials use an index space, and the graphs that they take.

    Pair        edges read two atoms, the energy is a sum over edges        nothing is scattered in the forward pass
    Gnn         messages are summed at the receiver, twice                  the common case
    Eam         each pair is listed once, densities are summed at both ends
    ThreeBody   angles read two edges each                                  a third space, owned by way of edges

All are in float64, smooth at the cutoff, and differentiate their own energy. A graph is a dict of

    positions   [n_atoms, 3]
    species     [n_atoms]       int64, below `N_SPECIES`
    edge_index  [2, n_edges]    int64, sender and receiver
    shifts      [n_edges, 3]    images of the sender's cell, in cells
    cell        [3, 3]
    angles      [2, n_angles]   int64, two edges of one receiver; with ``angles=True`` only
"""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from torch import Tensor, nn

N_SPECIES = 3
CUTOFF = 3.0

Graph = dict[str, Tensor]
Result = dict[str, Tensor]


def random_graph(
    n_atoms: int,
    seed: int = 0,
    *,
    cutoff: float = CUTOFF,
    volume: float = 8.0,
    half: bool = False,
    angles: bool = False,
) -> Graph:
    """Atoms at random places of a skewed periodic box, with their neighbours.

    Args:
        n_atoms: number of atoms; may be zero.
        seed: of positions and species.
        cutoff: distance up to which atoms are neighbours; boxes may be smaller than it.
        volume: of the box, per atom. Large enough, no atom has a neighbour.
        half: list each pair once instead of once in each direction.
        angles: add the pairs of edges that meet at an atom.
    """
    random = np.random.default_rng(seed)
    side = (max(n_atoms, 1) * volume) ** (1 / 3)
    cell = side * np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [0.0, -0.1, 1.0]])
    positions = random.random((n_atoms, 3)) @ cell
    species = random.integers(0, N_SPECIES, n_atoms)
    if n_atoms:
        atoms = Atoms(f"H{n_atoms}", positions=positions, cell=cell, pbc=True)
        receiver, sender, shifts = neighbor_list("ijS", atoms, cutoff)
    else:
        receiver, sender, shifts = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3), int)
    if half:  # of two directions keep the one to the higher atom; of an atom and its image, one of the two images
        kept = (sender < receiver) | ((sender == receiver) & _is_upper(shifts))
        receiver, sender, shifts = receiver[kept], sender[kept], shifts[kept]
    graph = {
        "positions": torch.tensor(positions, dtype=torch.float64),
        "species": torch.tensor(species, dtype=torch.int64),
        "edge_index": torch.tensor(np.stack([sender, receiver]), dtype=torch.int64),
        "shifts": torch.tensor(shifts, dtype=torch.float64),
        "cell": torch.tensor(cell, dtype=torch.float64),
    }
    if angles:
        graph["angles"] = _pairs_of_edges(graph["edge_index"][1])
    return graph


def _is_upper(shifts: np.ndarray) -> np.ndarray:
    """Whether the first component of a shift that is not zero is positive: true of one of an image and its opposite."""
    x, y, z = shifts.T
    return (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))


def _pairs_of_edges(receiver: Tensor) -> Tensor:
    one, two = torch.nonzero(receiver[:, None] == receiver[None, :], as_tuple=True)
    return torch.stack([one, two])[:, one != two]


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights that depend on `seed` only, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


class Potential(nn.Module):
    """Energy, forces and stress of an energy that a subclass defines."""

    def forward(self, graph: Graph) -> Result:
        strain = torch.zeros_like(graph["cell"]).requires_grad_()
        positions = graph["positions"].clone().requires_grad_()
        deformation = torch.eye(3, dtype=strain.dtype, device=strain.device) + (strain + strain.T) / 2
        sender, receiver = graph["edge_index"]
        cell = graph["cell"] @ deformation
        moved = positions @ deformation
        vectors = moved[sender] + graph["shifts"] @ cell - moved[receiver]
        energy, energies = self.energy(graph, vectors, vectors.norm(dim=-1))
        from_positions, from_strain = torch.autograd.grad(energy, [positions, strain])
        volume = torch.linalg.det(graph["cell"]).abs()
        result = {"energy": energy, "forces": -from_positions, "stress": from_strain / volume}
        if energies is not None:
            result["energies"] = energies
        return {name: value.detach() for name, value in result.items()}

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """The energy, and the energies of the atoms if the model has such."""
        raise NotImplementedError


def envelope(lengths: Tensor) -> Tensor:
    """1 at distance 0, smoothly 0 at the cutoff and beyond."""
    return (1 - (lengths / CUTOFF) ** 2).clamp(min=0) ** 3


def gaussians(lengths: Tensor, n: int = 6) -> Tensor:
    """Radial functions of each edge. Shape: [n_edges, n]."""
    centres = torch.linspace(0.0, CUTOFF, n, dtype=lengths.dtype, device=lengths.device)
    return torch.exp(-2.0 * (lengths[:, None] - centres) ** 2) * envelope(lengths)[:, None]


class Pair(Potential):
    """A pair potential: depths by species, half of each pair's energy per direction."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Embedding(N_SPECIES, 4)
        seeded(self)

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        sender, receiver = graph["edge_index"]
        depth = self.depth(graph["species"])
        strength = (depth[sender] * depth[receiver]).sum(-1)
        return 0.5 * (strength * (lengths - 1.5) * envelope(lengths)).sum(), None


class Gnn(Potential):
    """Two layers of messages, summed at the receiver, and a readout of each atom."""

    def __init__(self, features: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_SPECIES, features)
        self.radial = nn.ModuleList(nn.Linear(6, features, bias=False) for _ in range(layers))
        self.update = nn.ModuleList(nn.Linear(features, features) for _ in range(layers))
        self.readout = nn.Linear(features, 1)
        seeded(self)

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        sender, receiver = graph["edge_index"]
        h = self.embedding(graph["species"])
        for radial, update in zip(self.radial, self.update, strict=True):
            messages = radial(gaussians(lengths)) * h[sender]
            h = torch.tanh(update(h + torch.zeros_like(h).index_add(0, receiver, messages)))
        energies = self.readout(h).squeeze(-1)
        return energies.sum(), energies


class Eam(Potential):
    """An embedded-atom potential on a half neighbour list: every pair adds to the density at both its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.density = nn.Embedding(N_SPECIES, 1)
        seeded(self)

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        one, two = graph["edge_index"]
        source = self.density(graph["species"]).squeeze(-1) ** 2
        rho = torch.zeros_like(source)
        rho = rho.index_add(0, two, source[one] * envelope(lengths))
        rho = rho.index_add(0, one, source[two] * envelope(lengths))
        energies = -torch.sqrt(rho + 0.1)
        return energies.sum() + 0.3 * (envelope(lengths) ** 2).sum(), energies


class ThreeBody(Potential):
    """Edges, and pairs of edges that meet at an atom: angles read rows of edges, and sum back to edges."""

    def __init__(self) -> None:
        super().__init__()
        self.species = nn.Embedding(N_SPECIES, 1)
        seeded(self)

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        sender, receiver = graph["edge_index"]
        one, two = graph["angles"]
        bonds = self.species(graph["species"]).squeeze(-1)[sender] * envelope(lengths)
        cosine = (vectors[one] * vectors[two]).sum(-1) / (lengths[one] * lengths[two])
        bent = 0.1 * (cosine + 1 / 3) ** 2 * bonds[one] * bonds[two]
        bonds = bonds + torch.zeros_like(bonds).index_add(0, one, bent)
        energies = torch.zeros_like(graph["positions"][:, 0]).index_add(0, receiver, bonds - 0.1 * bonds**2)
        return energies.sum(), energies
