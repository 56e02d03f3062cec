"""On an accelerator results are those of the CPU, and no operator is given tensors of both."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import structures
import torch
import toys
from adversaries import ADVERSARIES
from ase.build import bulk
from processes import run_ranks
from springs import SpringCalculator
from training.models import Model, given, loss
from training.test_training_step import CRYSTAL, gradients, stock

import distcompile
from devices.stand_in import moved, on_the_device, stand_in
from distcompile import LocalWorld, outside, training_step
from distcompile.calculators.calculator import described
from distcompile.passes.lower import lower
from distcompile.runtime.world import World, default_world

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

TOYS = {"Gnn": {}, "ThreeBody": {"angles": True}, "Eam": {"half": True}, "Pair": {}}
EXACT = 1e-12


def _mixes_devices(one: str, other: str) -> str:
    stand_in()
    with pytest.raises(RuntimeError, match="same device") as found:
        torch.index_select(torch.ones(3, device=one), 0, torch.zeros(2, dtype=torch.int64, device=other))
    return str(found.value)


@pytest.mark.parametrize("other", ["cpu", "sim:1"])
def test_the_stand_in_tells_devices_apart(other: str) -> None:
    """Else nothing here would be tested."""
    assert "sim:0 and" in on_the_device(_mixes_devices, "sim:0", other)


def _world(ranks: int | list[str] | None) -> World:
    if ranks is None:
        return default_world()
    return LocalWorld(ranks) if isinstance(ranks, int) else LocalWorld(devices=ranks)


SEVERAL = ["sim:1", "sim:0", "sim:3"]
"""Of three ranks: two on other devices than the graph."""


def _apart(name: str, ranks: int | list[str] | None) -> dict[str, Any]:
    """The largest difference of each result from the CPU's; the devices of results; reads by the host in a call."""
    device, model = stand_in(), getattr(toys, name)()
    example, graph = (toys.random_graph(n, n, **TOYS[name]) for n in (20, 31))
    expected = model(graph)
    compiled = distcompile.compile(model.to("sim"), moved(example, "sim"), world=_world(ranks), lowering="eager")
    there = moved(graph, "sim")
    compiled(there)
    before = device.reads()
    found = compiled(there)
    reads = device.reads() - before
    apart = {name: float((found[name].cpu() - value).abs().max()) for name, value in expected.items()}
    return {"apart": apart, "devices": {str(value.device) for value in found.values()}, "reads": reads}


@pytest.mark.parametrize("ranks", [1, 3, SEVERAL], ids=str)
@pytest.mark.parametrize("name", TOYS)
def test_results(name: str, ranks: int | list[str]) -> None:
    """Energy, forces and stress of edges, bonds and angles."""
    found = on_the_device(_apart, name, ranks)
    assert max(found["apart"].values()) < EXACT
    assert found["devices"] == {"sim:0"}
    assert found["reads"] <= 2, "a host that waits for an answer has nothing to hand to the device"


def test_processes_whose_backend_takes_other_tensors() -> None:
    """Messages of a device go by the processor with gloo, as row numbers go by the accelerator with nccl."""
    for found in run_ranks(2, _apart, "ThreeBody", None, timeout=300.0, team="sim"):
        assert isinstance(found, dict), found
        assert max(found["apart"].values()) < EXACT
        assert found["devices"] == {"sim:0"}


def _after_a_step(home: str) -> float:
    """The largest difference of forces when weights have changed; the graph is not on any rank's device."""
    stand_in()
    model, graph = toys.Gnn(), toys.random_graph(20, 1)
    there = copy.deepcopy(model).to(home)
    world = LocalWorld(devices=["sim:1", "sim:2"])
    compiled = distcompile.compile(there, moved(graph, home), world=world, validate=False)
    compiled(moved(graph, home))
    with torch.no_grad():
        for weights in (model, there):
            for p in weights.parameters():
                p.mul_(1.5)
    return float((compiled(moved(graph, home))["forces"].cpu() - model(graph)["forces"]).abs().max())


@pytest.mark.parametrize("home", ["cpu", "sim:0"])
def test_weights_are_copied_when_they_change(home: str) -> None:
    assert on_the_device(_after_a_step, home) < EXACT


class Written(torch.nn.Module):
    """Calls that are said in other operators in a capture, which have to be on the device of what they are given."""

    def forward(self, graph: Any) -> Any:
        positions, (_, receiver) = graph["positions"], graph["edge_index"]
        counted = torch.zeros_like(positions[:, 0]).index_add(
            0, receiver, torch.ones_like(receiver).to(positions.dtype)
        )
        about = torch.tensor([positions.sum(), positions.shape[0]], device=positions.device)
        numbers = torch.arange(receiver.shape[0], device=receiver.device).to(positions.dtype)
        edges = torch.segment_reduce(numbers, "sum", lengths=counted.long())
        return {"spectrum": torch.fft.rfft(positions, dim=1).abs(), "about": about, "edges": edges.sum()}


def _written() -> tuple[float, set[str]]:
    """The largest difference from the CPU, and the devices of results."""
    stand_in()
    example, graph = (toys.random_graph(n, n) for n in (20, 31))
    expected = Written()(graph)
    compiled = distcompile.compile(Written(), moved(example, "sim"), lowering="eager", validate=False)
    found = compiled(moved(graph, "sim"))
    apart = [float((found[key].cpu() - value).abs().max()) for key, value in expected.items()]
    return max(apart), {str(value.device) for value in found.values()}


def test_what_is_said_in_other_operators() -> None:
    apart, devices = on_the_device(_written)
    assert apart < EXACT
    assert devices == {"sim:0"}


DEFAULTED = (
    "segment max at receivers",
    "triplets by a loop over atoms",
    "padding",
    "species counts",
    "sizes as floats",
    "linear algebra",
)
"""Models of the tests that make tensors without saying where."""


@contextmanager
def _by_default(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
        assert str(torch.get_default_device()) == "sim:0", "the user's choice stays"
    finally:
        torch.set_default_device(None)


def _on_the_default_device(name: str) -> tuple[float, set[str]]:
    """The largest difference from the CPU of any result of a model that relies on the default device."""
    stand_in()
    example, graph, *_ = ADVERSARIES[name].graphs()
    model = ADVERSARIES[name].model().eval()
    expected = model(graph)
    example, there = moved(example, "sim"), moved(graph, "sim")
    with _by_default("sim"):
        on_the_device = ADVERSARIES[name].model().eval()
        on_the_device.load_state_dict(model.state_dict())
        found = distcompile.compile(on_the_device, example, world=LocalWorld(2), lowering="eager")(there)
    apart = [float((found[key].cpu() - value).abs().max()) for key, value in expected.items()]
    return max(apart), {str(value.device) for value in found.values()}


@pytest.mark.parametrize("name", DEFAULTED)
def test_a_default_device_is_for_the_model_alone(name: str) -> None:
    """What the model makes is on it; row numbers, plans and checks are on the host as ever."""
    apart, devices = on_the_device(_on_the_default_device, name)
    assert apart < 1e-9
    assert devices == {"sim:0"}


class _Package(SpringCalculator):
    """A package that notes the default device that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.had: set[str] = set()

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """As the calculator of the tests, on the CPU."""
        self.had.add(str(torch.get_default_device()))
        with torch.device("cpu"):
            super().calculate(*args, **kwargs)


def _calculated_on_the_default_device() -> float:
    """The largest difference of forces from those without a default device."""
    stand_in()
    atoms = bulk("MgO", "rocksalt", 4.21).repeat(3)
    atoms.rattle(0.05, seed=1)
    atoms.calc = SpringCalculator()
    expected = atoms.get_forces()
    package = _Package()
    atoms.calc = distcompile.distribute(package, world=LocalWorld(2), lowering="eager")
    with _by_default("sim"):
        found = atoms.get_forces()
    assert package.had == {"sim:0"}
    assert package.calculate.graphs.last is not None, "graph objects were learned"
    return float(np.abs(found - expected).max())


def test_a_default_device_is_for_the_package_alone() -> None:
    """Graph objects are learned on the host, while the package runs as it does without us."""
    assert on_the_device(_calculated_on_the_default_device) < EXACT


def _stepped() -> tuple[float, str]:
    """The largest difference of any result of a calculator whose ranks are on devices; how its graphs were made."""
    stand_in()
    calculator = distcompile.distribute(SpringCalculator(), world=LocalWorld(devices=["sim:0", "sim:1"]))
    apart = []
    for step in range(6):
        atoms = bulk("MgO", "rocksalt", 4.21).repeat(3)
        atoms.rattle(0.05, seed=step)
        expected = atoms.copy()
        expected.calc, atoms.calc = SpringCalculator(), calculator
        results = ("get_potential_energy", "get_forces", "get_stress")
        apart += [float(np.abs(getattr(atoms, r)() - getattr(expected, r)()).max()) for r in results]
    return max(apart), str(described(calculator))


def test_a_calculator() -> None:
    """Its graphs are the package's at first, then rows that ranks make themselves; both are made on the processor."""
    apart, explained = on_the_device(_stepped)
    assert apart < EXACT
    assert "made without the package, each rank its rows" in explained


def _trained(ranks: int | list[str]) -> list[float]:
    """Differences of gradients from the stock model's on the CPU: of a step, and taken outside in both ways."""
    stand_in()
    graph, targets = given(structures.film())
    _, expected = stock(Model(), graph, targets)
    model = Model().to("sim")
    graph, targets = moved((graph, targets), "sim")
    example = moved(given(CRYSTAL), "sim")
    step = training_step(model, loss, *example, world=_world(ranks), lowering="eager", validate=False)
    dmodel = distcompile.compile(model, example[0], world=_world(ranks), lowering="eager", validate=False)

    def by(backward: Any) -> float:
        model.zero_grad()
        backward()
        return max(float((g.cpu() - expected[name]).abs().max()) for name, g in gradients(model).items())

    found = [by(lambda: step(graph, targets))]
    for outside.MANY in (0, 2**28):
        found.append(by(lambda: loss(dmodel(graph), targets)[0].backward()))
    return found


@pytest.mark.parametrize("ranks", [1, 2, SEVERAL], ids=str)
def test_training(ranks: int | list[str]) -> None:
    """Gradients of weights; on virtual ranks, no rank waits for another in the one thread of a device's gradients."""
    assert max(on_the_device(_trained, ranks)) < 1e-10
