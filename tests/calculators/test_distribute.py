"""`distcompile.distribute`: whatever a calculator calls of its models runs on the ranks, or a warning names it."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import springs
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import AverageCalculator, LinearCombinationCalculator, MixedCalculator, SumCalculator
from ase.neighborlist import neighbor_list
from at_once import in_threads
from processes import run_ranks
from springs import CUTOFF, SpringCalculator, Springs
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld, ProcessGroupWorld
from distcompile.calculators.calculator import received, statistics

Graph = dict[str, Tensor]


def crystal(repeat: tuple[int, int, int] = (2, 1, 1), seed: int = 1) -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(repeat)
    atoms.rattle(0.08, seed=seed)
    return atoms


def graph_of(atoms: Atoms) -> Graph:
    receiver, sender, shifts = neighbor_list("ijS", atoms, CUTOFF)
    return {
        "oxygen": torch.tensor(atoms.numbers == 8),
        "positions": torch.tensor(atoms.positions),
        "cell": torch.tensor(atoms.cell.array),
        "edge_index": torch.stack([torch.tensor(sender), torch.tensor(receiver)]),
        "shifts": torch.tensor(shifts, dtype=torch.float64),
    }


class Methods(Springs):
    """Can be called in more ways than one; its head is a module within it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3).double()
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.3], [-0.7], [1.1]]))
            self.head.bias.copy_(torch.tensor([0.1, 0.2, -0.4]))

    def energy(self, graph: Graph) -> Tensor:
        sender, receiver = graph["edge_index"]
        vectors = graph["positions"][sender] + graph["shifts"] @ graph["cell"] - graph["positions"][receiver]
        lengths = vectors.norm(dim=-1)
        sign = 1 - 2 * (graph["oxygen"][sender] != graph["oxygen"][receiver]).double()
        edges = self.depth * sign * torch.exp(self.length - lengths)
        return torch.zeros_like(graph["positions"][:, 0]).index_add(0, receiver, edges).sum()

    def energy_and_forces(self, graph: Graph, scale: float = 1.0) -> Graph:
        graph = graph | {"positions": graph["positions"].clone().requires_grad_()}
        energy = scale * self.energy(graph)
        return {"energy": energy.detach(), "forces": -torch.autograd.grad(energy, graph["positions"])[0]}

    def predict(self, graph: Graph) -> dict[str, np.ndarray]:
        """Calls the module itself, then leaves torch."""
        return {name: value.detach().numpy() for name, value in self(graph).items()}

    def predict_by_method(self, graph: Graph) -> dict[str, np.ndarray]:
        """Calls another method, then leaves torch."""
        return {name: value.numpy() for name, value in self.energy_and_forces(graph).items()}

    def predict_atoms(self, atoms: Atoms) -> Graph:
        return self.energy_and_forces(graph_of(atoms))

    def direct(self, graph: Graph) -> Graph:
        sender, receiver = graph["edge_index"]
        lengths = (graph["positions"][sender] - graph["positions"][receiver]).norm(dim=-1)
        rows = torch.zeros_like(graph["positions"][:, 0]).index_add(0, receiver, torch.exp(-lengths) * self.depth)
        return {"energy": rows.sum().detach(), "forces": self.head(rows[:, None]).detach()}

    def embedded(self, graph: Graph) -> Tensor:
        return self.depth * graph["positions"]


def by_gradient_outside(model: Methods, graph: Graph) -> dict[str, Any]:
    positions = graph["positions"].requires_grad_()
    energy = model.energy(graph)
    return {"energy": energy.detach(), "forces": -torch.autograd.grad(energy, positions)[0]}


WAYS: dict[str, tuple[Callable[[Methods, Atoms], dict[str, Any]], str]] = {
    "forward": (lambda model, atoms: model(graph_of(atoms)), "forward"),
    "a method": (lambda model, atoms: model.energy_and_forces(graph_of(atoms)), "energy_and_forces"),
    "a keyword": (lambda model, atoms: model.energy_and_forces(graph=graph_of(atoms)), "energy_and_forces"),
    "an option": (lambda model, atoms: model.energy_and_forces(graph_of(atoms), scale=2.0), "energy_and_forces"),
    "a gradient outside": (lambda model, atoms: by_gradient_outside(model, graph_of(atoms)), "energy"),
    "a method that calls the module": (lambda model, atoms: model.predict(graph_of(atoms)), "forward"),
    "a method that calls one": (lambda model, atoms: model.predict_by_method(graph_of(atoms)), "energy_and_forces"),
    "a method without tensors": (lambda model, atoms: model.predict_atoms(atoms), "energy_and_forces"),
    "a detached result": (lambda model, atoms: model.direct(graph_of(atoms)), "direct"),
}
"""How a calculator calls its model, and the method that is compiled for it."""


class Way(Calculator):
    """Calls its model in one of several ways."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  as ASE declares it

    def __init__(self, way: str = "forward", model: nn.Module | None = None) -> None:
        super().__init__()
        self.way, self.model = way, model or Methods()

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        found = WAYS[self.way][0](self.model, atoms)  # type: ignore[arg-type]
        forces = found["forces"]  # NumPy's own, or of a tensor that must require no gradient
        self.results = {
            "energy": float(found["energy"]),
            "forces": forces if isinstance(forces, np.ndarray) else forces.numpy(),
        }


def results(calculator: Any, atoms: Atoms) -> tuple[float, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces().copy()


def assert_same(found: tuple[float, np.ndarray], expected: tuple[float, np.ndarray]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-11)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-11)
    assert np.abs(expected[1]).max() > 1e-3


def compiled_methods(model: nn.Module) -> set[str]:
    """Those that ran as compiled programs."""
    return {entry.name for entry in vars(model).values() if getattr(entry, "last", None) is not None}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_calculator_calls_is_compiled(way: str, ranks: int) -> None:
    """And nothing else, without a warning; structures of other sizes are served by the same program."""
    stock, ours = Way(way), distcompile.distribute(Way(way), world=LocalWorld(ranks))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for atoms in (crystal(), crystal((2, 2, 1), 3)):
            assert_same(results(ours, atoms), results(stock, atoms))
    rows = statistics(ours)
    assert [row["rank"] for row in rows] == list(range(ranks))
    assert sum(row["owned"]["atoms"] for row in rows) == 32
    assert compiled_methods(ours.model) == {WAYS[way][1]}
    model, _ = received(ours, crystal())
    assert model.captures == 1


@pytest.mark.parametrize("training", [True, False])
def test_results_become_numbers_in_either_mode(training: bool) -> None:
    for way in ("forward", "a method", "a detached result"):
        stock, ours = Way(way), distcompile.distribute(Way(way), world=LocalWorld(2))
        for one in (stock, ours):
            one.model.train(training)
        assert_same(results(ours, crystal()), results(stock, crystal()))


def outside(model: Methods, graph: Graph) -> dict[str, Any]:
    """Multiplies with a weight, by itself."""
    found = model(graph)
    return found | {"forces": found["forces"] * model.depth.detach()}


def by_its_head(model: Methods, graph: Graph) -> dict[str, Any]:
    found = model(graph)
    return found | {"forces": model.head(found["forces"][:, :1]).detach()}


def by_what_cannot_be_captured(model: Methods, graph: Graph) -> dict[str, Any]:
    return model(graph) | {"forces": model.embedded(graph).detach()}


@pytest.mark.parametrize(
    ("way", "names"),
    [
        (outside, r"Way computes with Methods\.depth outside"),
        (by_its_head, r"Way computes with Methods\.head\.bias, Methods\.head\.weight outside"),
        (by_what_cannot_be_captured, r"Methods\.embedded .*computes with Methods\.depth outside"),
    ],
)
def test_what_computes_elsewhere_is_named(way: Any, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "elsewhere", (lambda model, atoms: way(model, graph_of(atoms)), ""))
    ours = distcompile.distribute(Way("elsewhere"), world=LocalWorld(2))
    with pytest.warns(UserWarning, match=names):
        found = results(ours, crystal())
    assert_same(found, results(Way("elsewhere", copy.deepcopy(ours.model)), crystal()))


def test_a_way_around_every_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that was taken out of the module before; its weights are seen in use."""
    calculator = Way()
    forward = calculator.model.forward
    monkeypatch.setitem(WAYS, "forward", (lambda model, atoms: forward(graph_of(atoms)), ""))
    ours = distcompile.distribute(calculator, world=LocalWorld(2))
    with pytest.warns(UserWarning, match=r"Way computes with Methods\.depth, Methods\.length outside"):
        results(ours, crystal())
    monkeypatch.setitem(
        WAYS, "forward", (lambda model, atoms: {"energy": torch.ones(()), "forces": torch.ones(16, 3)}, "")
    )
    with pytest.warns(UserWarning, match=r"without a call of .* Found were Methods\.forward, Methods\.energy, "):
        results(ours, crystal(seed=2))


@pytest.mark.parametrize("ranks", [1, 2])
def test_models_that_come_later_are_distributed(ranks: int) -> None:
    """Another one in place of the first; one that a calculation makes; then the same again, with nothing to do."""
    ours = distcompile.distribute(Way(), world=LocalWorld(ranks))
    results(ours, crystal())
    ours.model = Methods()
    with torch.no_grad():
        ours.model.depth.mul_(2)
    expected = results(Way(model=copy.deepcopy(ours.model)), crystal(seed=2))
    assert_same(results(ours, crystal(seed=2)), expected)
    assert len(statistics(ours)) == ranks and compiled_methods(ours.model) == {"forward"}


class Lazy(Way):
    """Makes a second model when it first calculates."""

    second: Methods | None = None
    calls = 0

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        self.calls += 1
        super().calculate(atoms, properties, system_changes)
        self.second = self.second or Methods()
        self.results["energy"] += float(self.second.energy(graph_of(atoms)).detach())


def test_models_that_a_calculation_makes_are_distributed() -> None:
    stock, ours = Lazy(), distcompile.distribute(Lazy(), world=LocalWorld(2))
    for seed in (1, 2):
        assert_same(results(ours, crystal(seed=seed)), results(stock, crystal(seed=seed)))
    assert ours.second is not None and compiled_methods(ours.second) == {"energy"}
    assert (stock.calls, ours.calls) == (2, 3), "once more after the first"


def test_a_calculator_without_a_model_yet() -> None:
    empty = Way()
    empty.model = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="use it once before"):
        distcompile.distribute(empty)


def in_a_circle() -> Any:
    """Calculators that hold each other."""
    one, two = Way(), Way("a method")
    one.other, two.other = two, one  # type: ignore[attr-defined]
    return SumCalculator([one, two])


class Committee(Calculator):
    """Holds calculators in a dict of lists, within an object of its own."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    class Members:
        def __init__(self, members: dict[str, list[Any]]) -> None:
            self.by_name = members

    def __init__(self, members: dict[str, list[Any]]) -> None:
        super().__init__()
        self.members = self.Members(members)

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        found = [results(one, atoms) for members in self.members.by_name.values() for one in members]
        self.results = {"energy": float(np.mean([e for e, _ in found])), "forces": np.mean([f for _, f in found], 0)}


HOLDERS: dict[str, Callable[[], Any]] = {
    "sum": lambda: SumCalculator([Way(), Way("a method")]),
    "beside one without a model": lambda: SumCalculator([LennardJones(sigma=1.5, rc=3.0), Way()]),
    "linear combination": lambda: LinearCombinationCalculator([Way(), Way("a method")], [0.3, 0.9]),
    "average": lambda: AverageCalculator([Way(), SpringCalculator()]),
    "mixed": lambda: MixedCalculator(Way(), Way("a method"), 0.2, 0.8),
    "five deep": lambda: functools.reduce(lambda inner, _: SumCalculator([inner]), range(5), Way()),
    "committee": lambda: Committee({"a": [Way(), Way("a method")], "b": [SumCalculator([SpringCalculator()])]}),
    "circle": in_a_circle,
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", HOLDERS)
def test_calculators_of_calculators(name: str, ranks: int) -> None:
    """However deep they hold each other; statistics and what a model receives are found inside."""
    stock, ours = HOLDERS[name](), HOLDERS[name]()
    inner_results = results(ours, crystal())  # of the stock models, which must not be taken for ours
    assert distcompile.distribute(ours, world=LocalWorld(ranks)) is ours
    assert statistics(ours) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for atoms in (crystal(), crystal((2, 2, 1), 3)):
            assert_same(results(ours, atoms), results(stock, atoms))
    assert_same(inner_results, results(stock, crystal()))
    assert len(statistics(ours)) == ranks
    model, graph = received(ours, crystal())
    assert sum(row["owned"]["atoms"] for row in model.stats(*graph)) == 16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda calculator: pickle.loads(pickle.dumps(calculator))])
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("make", [Way, lambda: Way("a method"), lambda: SumCalculator([Way(), SpringCalculator()])])
def test_copies_are_distributed(
    make: Callable[[], Any], used: bool, copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over as many virtual ranks; they compile anew, and have weights of their own."""
    monkeypatch.setitem(sys.modules, "springs", springs)  # other tests load the file once more
    ours = distcompile.distribute(make(), world=LocalWorld(2))
    expected = results(make(), crystal())
    if used:
        assert_same(results(ours, crystal()), expected)
    other = copied(ours)
    assert statistics(other) == []
    assert_same(results(other, crystal(seed=4)), results(make(), crystal(seed=4)))
    assert len(statistics(other)) == 2
    assert len(statistics(ours)) == (2 if used else 0)
    if isinstance(other, Way):
        with torch.no_grad():
            other.model.depth.mul_(3)
        assert results(other, crystal())[0] == pytest.approx(3 * expected[0], rel=1e-11)
        assert_same(results(ours, crystal(seed=1)), expected)


def worlds_and_energies(pickled: bytes) -> tuple[Any, Any, int, float]:
    """In a group: its world, one for where it goes, how many ranks a calculator from outside uses, and its energy."""
    calculator = pickle.loads(pickled)
    energy = results(calculator, crystal())[0]
    return ProcessGroupWorld().size, ProcessGroupWorld(), len(statistics(calculator)), energy


def test_a_calculator_that_is_sent_to_ranks_uses_them() -> None:
    """And a world of ranks that is sent to a process without any is that process."""
    expected = results(Way("a method"), crystal())[0]
    pickled = pickle.dumps(distcompile.distribute(Way("a method")))
    for size, world, ranks, energy in run_ranks(2, worlds_and_energies, pickled):
        assert (size, repr(world), ranks) == (2, "LocalWorld(1)", 2)
        assert energy == pytest.approx(expected, rel=1e-11)


def test_first_calls_of_calculators_in_threads() -> None:
    """Two of one kind, one of another, a stock one beside them."""
    expected = {way: results(Way(way), crystal()) for way in ("forward", "a method")}

    def work(way: str, ranks: int) -> tuple[float, np.ndarray]:
        calculator = Way(way)
        return results(distcompile.distribute(calculator, world=LocalWorld(ranks)) if ranks else calculator, crystal())

    found = in_threads(*[lambda w=way, n=n: work(w, n) for way in expected for n in (0, 1, 2)])
    for i, way in enumerate(way for way in expected for _ in range(3)):
        assert_same(found[i], expected[way])


class Structures(nn.Module):
    """Makes the graph of a structure with NumPy, as packages of simulations wrap models; keeps what it made it of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.numbers: Tensor | None = None
        self.oxygen: Tensor | None = None

    def forward(self, structure: dict[str, Tensor]) -> Any:
        if self.numbers is not structure["numbers"]:
            self.numbers = structure["numbers"]
            self.oxygen = torch.from_numpy(structure["numbers"].numpy() == 8)
        numbers, positions, cell = (structure[name].numpy() for name in ("numbers", "positions", "cell"))
        atoms = Atoms(numbers, positions, cell=cell, pbc=True)
        return self.model({**graph_of(atoms), "oxygen": self.oxygen})


class Total(nn.Module):
    """Has weights, and nothing that could be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, graph: Graph) -> Tensor:
        return self.factor * graph["cell"].sum()


def structure(seed: int) -> dict[str, Tensor]:
    atoms = crystal(seed=seed)
    return {name: torch.tensor(getattr(atoms, name)) for name in ("numbers", "positions")} | {
        "cell": torch.tensor(atoms.cell.array)
    }


def test_a_module_around_a_model() -> None:
    """It cannot be captured and makes graphs only, so the model within is distributed; a failed try leaves nothing."""
    ours = distcompile.distribute(Structures(Springs()), world=LocalWorld(2))
    with pytest.warns(UserWarning, match="Structures cannot be captured .*, so the Springs that it calls is"):
        ours(structure(1))
    for seed in (1, 2):
        expected, found = Structures(Springs())(structure(seed)), ours(structure(seed))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
    assert len(statistics(ours)) == 2


def test_a_module_around_nothing_to_divide() -> None:
    """The error is of the module that was given; the one within it stays as it was."""
    ours = distcompile.distribute(Structures(Total()), world=LocalWorld(2))
    with pytest.raises(distcompile.CaptureError):
        ours(structure(1))
    assert "forward" not in vars(ours.model)
