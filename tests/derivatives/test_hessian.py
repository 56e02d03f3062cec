"""Second derivatives row by row are those of the stock model, on any ranks; what cannot be meant is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adversaries import ADVERSARIES
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from processes import run_ranks
from springs import SpringCalculator
from structures import crystal
from torch import Tensor, nn
from toys import CUTOFF, Eam, Gnn, Graph, Pair, Potential, ThreeBody, random_graph

import distcompile
from distcompile import DerivativeError, LocalWorld
from distcompile.derivatives.candidates import derivatives
from distcompile.ir.tree import flatten
from distcompile.model import arguments


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def by_autograd(model: Potential, graph: Graph) -> Tensor:
    """The Hessian by torch alone, of the whole graph at once."""

    def energy(positions: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        return model.energy({**graph, "positions": positions}, vectors, vectors.norm(dim=-1))[0]

    return torch.autograd.functional.hessian(energy, graph["positions"])


@pytest.mark.parametrize("make", [Pair, Gnn, Eam, ThreeBody])
def test_it_is_that_of_torch(make: type[Potential]) -> None:
    """On 1, 2 and 3 ranks, of models that detach what they return; symmetric, and the sum over all atoms is zero."""
    model = make().eval()
    graph = random_graph(11, 1, half=make is Eam, angles=make is ThreeBody)
    expected = by_autograd(model, graph)
    for ranks in (1, 2, 3):
        found = distcompile.hessian(model, graph, world=LocalWorld(ranks))
        assert found.shape == (11, 3, 11, 3)
        assert found.dtype == torch.float64
        assert relative(found, expected) < 1e-12
        assert relative(found.permute(2, 3, 0, 1), found) < 1e-12
        assert float(found.sum(2).abs().max()) < 1e-12 * float(found.abs().max())


def test_rows_of_some_atoms() -> None:
    """In the order in which they are named, by a compiled model too."""
    model, graph = Gnn().eval(), random_graph(11, 1)
    compiled = distcompile.compile(model, random_graph(20, 3), world=LocalWorld(2))
    whole = by_autograd(model, graph)
    for rows in ([4, 2, -1], range(3, 9, 2), slice(2), np.array([7])):
        wanted = np.arange(11)[rows]
        assert relative(distcompile.hessian(compiled, graph, rows), whole[wanted]) < 1e-12
    assert distcompile.hessian(compiled, graph, []).shape == (0, 3, 11, 3)
    (derived,) = compiled.derived.values()
    assert derived.captures == 1, "one program for all calls"
    with pytest.raises(DerivativeError, match="atom 11, but there are 11 atoms"):
        distcompile.hessian(compiled, graph, [11])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_atoms(n: int) -> None:
    """Of which there is nothing to divide; three positions look like a cell."""
    model, graph = Gnn().eval(), random_graph(n, 1)
    expected = by_autograd(model, graph)
    found = distcompile.hessian(model, graph, world=LocalWorld(2), positions=lambda graph: graph["positions"])
    assert float((found - expected).abs().max()) < 1e-12
    assert torch.equal(distcompile.hessian(model, graph), found)


class Returning(nn.Module):
    """Returns what a function makes of (graph, energy, forces), which carry their gradients."""

    def __init__(self, returned: Any, seen: Any = lambda positions: positions) -> None:
        super().__init__()
        self.pair, self.returned, self.seen = Pair(), returned, seen

    def forward(self, graph: Graph) -> Any:
        positions = self.seen(graph["positions"]).clone().requires_grad_()
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        energy, _ = self.pair.energy(graph, vectors, vectors.norm(dim=-1))
        return self.returned(graph, energy, positions)


def forces(energy: Tensor, positions: Tensor) -> Tensor:
    return -torch.autograd.grad(energy, positions)[0]


GRAPH = random_graph(9, 2)
PAIR = by_autograd(Pair().eval(), GRAPH)


def test_of_several_energies_it_is_that_of_the_forces() -> None:
    """With a reference energy, an energy per atom and a penalty beside it; at rest, too, where forces tell nothing."""

    def returned(graph: Graph, energy: Tensor, positions: Tensor) -> Any:
        n = positions.shape[0]
        beside = {"a": energy / n, "b": (positions**2).sum(), "c": positions[:, 0].mean().detach(), "z": energy + 3}
        return {**beside, "forces": forces(energy, positions)}

    assert relative(distcompile.hessian(Returning(returned), GRAPH, world=LocalWorld(2)), PAIR) < 1e-12


def test_positions_and_energy_can_be_picked() -> None:
    """A batch of one, energies of atoms; what is picked has to be of the graph."""

    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Returning(
                lambda graph, energy, positions: {"parts": torch.stack([energy / 4, 3 * energy / 4])}
            )

        def forward(self, graph: Graph) -> Any:
            return self.model({**graph, "positions": graph["x"].squeeze(0)})

    graph = {**GRAPH, "x": GRAPH["positions"][None], "velocities": torch.ones_like(GRAPH["positions"])}
    graph["positions"] = graph["positions"].clone()
    found = distcompile.hessian(Batch(), graph, positions=lambda g: g["x"], energy=lambda r: r["parts"].sum())
    assert relative(found, PAIR) < 1e-12
    with pytest.raises(DerivativeError, match=r"\['x'\] \[1, 9, 3\]"):
        distcompile.hessian(Batch(), graph, positions=lambda g: 2 * g["x"], energy=lambda r: r["parts"].sum())


def no_grad(graph: Graph, energy: Tensor, positions: Tensor) -> Any:
    return {"energy": energy.detach()}


def two(graph: Graph, energy: Tensor, positions: Tensor) -> Any:
    return {"one": energy, "two": (positions**2).sum()}


def another(graph: Graph, energy: Tensor, positions: Tensor) -> Any:
    return {"energy": energy.detach(), "forces": forces(energy + (positions**2).sum(), positions)}


def whole(graph: Graph, energy: Tensor, positions: Tensor) -> Any:
    return {"energy": energy}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Returning(no_grad), r"carries no gradient.*Return it as it was computed \(without \.detach\(\)"),
        (Returning(whole, seen=Tensor.detach), r"does not depend on \[0\]\['positions'\].*model detaches it"),
        (Returning(two), r"Several of.*\['positions'\] \[9, 3\].*\['one'\] \[\], \['two'\] \[\]: choose with energy="),
        (Returning(another), "takes its forces of another number"),
    ],
)
def test_what_cannot_be_meant_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(DerivativeError, match=said):
        distcompile.hessian(model, GRAPH)


NAMES = [
    *("attention", "neighbour matrix", "two inputs", "padding"),
    "global statistics",  # whole values beside partial ones, in one sum
]


@pytest.mark.parametrize("name", NAMES)
def test_adversaries(name: str) -> None:
    """Other forms of graphs, lists and features; against the stock model's forces, differentiated in training mode."""
    model, graph = ADVERSARIES[name].model().train(), ADVERSARIES[name].graphs()[0]
    leaves, tree = flatten(arguments(graph))
    (place,) = [i for i, leaf in enumerate(leaves) if "positions" in leaf.path]

    def gradient(positions: Tensor) -> Tensor:
        result = model(*tree.unflatten([positions if i == place else x.tensor for i, x in enumerate(leaves)]))
        return -next(leaf.tensor for leaf in flatten(result)[0] if leaf.tensor.shape == positions.shape)

    expected = torch.autograd.functional.jacobian(gradient, leaves[place].tensor)
    assert relative(distcompile.hessian(model.eval(), graph, world=LocalWorld(2)), expected) < 1e-12


def by_differences(calculator: Any, atoms: Atoms, step: float = 1e-4) -> Tensor:
    """The Hessian by central differences of a stock calculator's forces, good to 1e-6."""
    lines = []
    for atom, component in np.ndindex(len(atoms), 3):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, component] += sign * step
            moved.calc = calculator
            ends.append(moved.get_forces().copy())
        lines.append((ends[1] - ends[0]) / (2 * step))
    return torch.tensor(np.array(lines)).reshape(len(atoms), 3, len(atoms), 3)


@pytest.mark.parametrize("vacancy", [True, False])
def test_of_a_calculator(vacancy: bool) -> None:
    """In eV/A^2; also where all forces are zero. Its results are of the structure that it was asked for, afterwards."""
    atoms = crystal((1, 1, 1), vacancy)
    if not vacancy:
        atoms.set_scaled_positions(np.round(atoms.get_scaled_positions() * 2) / 2)
    atoms.calc, stock = SpringCalculator(), SpringCalculator()
    before = atoms.get_forces()
    found = distcompile.hessian(atoms.calc, atoms, world=LocalWorld(2))
    assert relative(found, by_differences(stock, atoms)) < 1e-6
    assert relative(found.permute(2, 3, 0, 1), found) < 1e-12
    assert np.abs(atoms.calc.get_property("forces", atoms) - before).max() < 1e-12
    assert torch.equal(distcompile.hessian(atoms.calc, atoms, rows=[2]), found[[2]])


class Pairs(Calculator):
    """Gives a model of its own what `graph` makes of positions, cell and neighbours."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  as ASE declares it

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = atoms.copy()
        atoms.wrap()
        receiver, sender, shifts = neighbor_list("ijS", atoms, CUTOFF)
        graph = {
            "fractions": torch.tensor(atoms.get_scaled_positions(wrap=False)),
            "species": torch.tensor(atoms.numbers % 3),
            "edge_index": torch.tensor(np.stack([sender, receiver])),
            "shifts": torch.tensor(shifts, dtype=torch.float64),
            "cell": torch.tensor(atoms.cell.array),
        }
        result = self.model(self.model.prepared(graph))
        self.results = {"energy": float(result["energy"]) * len(atoms), "forces": result["forces"].detach().numpy()}


class Fractional(nn.Module):
    """Takes fractional positions; returns the energy per atom, and forces in eV/A."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def prepared(self, graph: Graph) -> Graph:
        return graph

    def forward(self, graph: Graph) -> Any:
        positions = (graph["fractions"] @ graph["cell"]).requires_grad_()
        sender, receiver = graph["edge_index"]
        vectors = positions[sender] + graph["shifts"] @ graph["cell"] - positions[receiver]
        energy, _ = self.pair.energy(graph, vectors, vectors.norm(dim=-1))
        return {"energy": energy / positions.shape[0], "forces": forces(energy, positions)}


class Vectors(Fractional):
    """Takes the vectors of edges."""

    def prepared(self, graph: Graph) -> Graph:
        sender, receiver = graph["edge_index"]
        vectors = (graph["fractions"][sender] + graph["shifts"] - graph["fractions"][receiver]) @ graph["cell"]
        return {"species": graph["species"], "edge_index": graph["edge_index"], "vectors": vectors}

    def forward(self, graph: Graph) -> Any:
        vectors = graph["vectors"].clone().requires_grad_()
        energy, _ = self.pair.energy(graph, vectors, vectors.norm(dim=-1))
        pulls = torch.autograd.grad(energy, vectors)[0]
        zeros, (sender, receiver) = torch.zeros(graph["species"].shape[0], 3).to(pulls), graph["edge_index"]
        summed = zeros.index_add(0, receiver, pulls).index_add(0, sender, -pulls)
        return {"energy": energy / graph["species"].shape[0], "forces": summed}


class Direct(Fractional):
    """Predicts forces that are no gradient."""

    def forward(self, graph: Graph) -> Any:
        result = super().forward(graph)
        return {**result, "forces": result["forces"] * graph["species"][:, None]}


def skewed() -> Atoms:
    """Atoms in a skewed cell, one of them outside."""
    cell = np.array([[4.0, 0, 0], [0.9, 4.4, 0], [-0.5, 0.7, 3.8]])
    places = np.random.default_rng(3).random((6, 3))
    places[2] += [1, 0, -2]
    return Atoms("HHeLiBeBC", scaled_positions=places, cell=cell, pbc=True)


def test_of_fractional_positions() -> None:
    """In a skewed cell, of an energy per atom, with an atom in another cell than the graph has it in."""
    atoms = skewed()
    found = distcompile.hessian(Pairs(Fractional()), atoms, world=LocalWorld(3))
    assert relative(found, by_differences(Pairs(Fractional()), atoms)) < 1e-6
    assert relative(found.permute(2, 3, 0, 1), found) < 1e-12


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Vectors, "no tensor of the graph that the model is given holds the positions.*vectors of edges"),
        (Direct, r"that of result\['energy'\] by \[0\]\['fractions'\] is another.*predicts directly"),
    ],
)
def test_forces_that_are_no_gradient_by_positions_are_refused(model: type[Fractional], said: str) -> None:
    with pytest.raises(DerivativeError, match=said):
        distcompile.hessian(Pairs(model()), skewed())


def test_memory_is_that_of_one_row() -> None:
    """Four times as many atoms: what a rank needs grows with the atoms, not with their square."""
    model = distcompile.compile(Gnn().eval(), GRAPH, validate=False)
    one = derivatives(model, (GRAPH,), "[0]['positions']", "['energy']")
    peaks = []
    for n in (250, 1000):
        graph = random_graph(n, 1)
        peaks.append(one.compiled.stats(graph, torch.ones_like(graph["positions"]))[0]["peak_memory"])
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 8 * (3 * 1000) ** 2 / 5, "a fifth of the whole"


def _on_processes() -> float:
    found = distcompile.hessian(Gnn().eval(), GRAPH)
    return relative(found, by_autograd(Gnn().eval(), GRAPH))


def test_on_processes() -> None:
    assert max(run_ranks(2, _on_processes)) < 1e-12


def test_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (False, True):
        monkeypatch.setattr("distcompile.show.progress.sys.stderr.isatty", lambda t=terminal: t)
        distcompile.hessian(Returning(whole), GRAPH, rows=[0])
        assert ("Hessian" in capsys.readouterr().err) is terminal
