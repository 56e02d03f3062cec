"""On an accelerator results are those of the CPU, and no operator is given tensors of both."""

from __future__ import annotations

from typing import Any

import pytest
import structures
import torch
import toys
from training.models import Model, given, loss
from training.test_training_step import CRYSTAL, gradients, stock

import distcompile
from devices.stand_in import moved, on_the_device, stand_in
from distcompile import LocalWorld, outside, training_step
from distcompile.passes.lower import lower

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

TOYS = {"Gnn": {}, "ThreeBody": {"angles": True}, "Eam": {"half": True}, "Pair": {}}
EXACT = 1e-12


def _mixes_devices() -> str:
    stand_in()
    with pytest.raises(RuntimeError, match="same device") as found:
        torch.index_select(torch.ones(3, device="sim"), 0, torch.zeros(2, dtype=torch.int64))
    return str(found.value)


def test_the_stand_in_tells_devices_apart() -> None:
    """Else nothing here would be tested."""
    assert "sim" in on_the_device(_mixes_devices)


def _apart(name: str, ranks: int) -> dict[str, Any]:
    """The largest difference of each result from the CPU's; the devices of results; reads by the host in a call."""
    device, model = stand_in(), getattr(toys, name)()
    example, graph = (toys.random_graph(n, n, **TOYS[name]) for n in (20, 31))
    expected = model(graph)
    compiled = distcompile.compile(model.to("sim"), moved(example, "sim"), world=LocalWorld(ranks), lowering="eager")
    there = moved(graph, "sim")
    compiled(there)
    before = device.reads()
    found = compiled(there)
    reads = device.reads() - before
    apart = {name: float((found[name].cpu() - value).abs().max()) for name, value in expected.items()}
    return {"apart": apart, "devices": {value.device.type for value in found.values()}, "reads": reads}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", TOYS)
def test_results(name: str, ranks: int) -> None:
    """Energy, forces and stress of edges, bonds and angles."""
    found = on_the_device(_apart, name, ranks)
    assert max(found["apart"].values()) < EXACT
    assert found["devices"] == {"sim"}
    assert found["reads"] <= 4, "a host that waits for an answer has nothing to hand to the device"


def _trained(ranks: int) -> list[float]:
    """Differences of gradients from the stock model's on the CPU: of a step, and taken outside in both ways."""
    stand_in()
    graph, targets = given(structures.film())
    _, expected = stock(Model(), graph, targets)
    model = Model().to("sim")
    graph, targets = moved((graph, targets), "sim")
    example = moved(given(CRYSTAL), "sim")
    step = training_step(model, loss, *example, world=LocalWorld(ranks), lowering="eager", validate=False)
    dmodel = distcompile.compile(model, example[0], world=LocalWorld(ranks), lowering="eager", validate=False)

    def by(backward: Any) -> float:
        model.zero_grad()
        backward()
        return max(float((g.cpu() - expected[name]).abs().max()) for name, g in gradients(model).items())

    found = [by(lambda: step(graph, targets))]
    for outside.MANY in (0, 2**28):
        found.append(by(lambda: loss(dmodel(graph), targets)[0].backward()))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_training(ranks: int) -> None:
    """Gradients of weights; on virtual ranks, no rank waits for another in the one thread of a device's gradients."""
    assert max(on_the_device(_trained, ranks)) < 1e-10
