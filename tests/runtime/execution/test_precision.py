"""A call under autocast is the stock model's call under autocast: a program of its own, beside the one without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from adversaries import ToReceivers, plain
from torch import Tensor

import distcompile
from distcompile import DistributedModel, LocalWorld

GRAPHS = [{name: t.float() if t.is_floating_point() else t for name, t in graph.items()} for graph in plain()]


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[ToReceivers, DistributedModel]]:
    """A model in float32, and its program on two ranks, compiled without autocast."""
    model = ToReceivers().float().eval()
    yield model, distcompile.compile(model, GRAPHS[0], world=LocalWorld(2))


def of(model: Any, graph: Any, where: AbstractContextManager[Any]) -> dict[str, Tensor]:
    with where:
        return {name: value.detach() for name, value in model(graph).items()}


def test_each_call_gets_the_program_of_its_precision(both: tuple[ToReceivers, DistributedModel]) -> None:
    """Two programs serve calls with and without autocast, in any order."""
    model, compiled = both
    for graph in GRAPHS[1:]:
        for where in (autocast, nullcontext, autocast):
            found, expected = of(compiled, graph, where()), of(model, graph, where())
            assert found["energy"].dtype == expected["energy"].dtype
            scale = {name: float(value.float().abs().max()) for name, value in expected.items()}
            worst = {name: float((found[name].float() - expected[name].float()).abs().max()) for name in found}
            tolerance = 2**-6 if where is autocast else 1e-6
            assert all(worst[name] <= tolerance * scale[name] for name in worst), worst
    assert compiled.captures == 2


def test_autocast_makes_a_difference(both: tuple[ToReceivers, DistributedModel]) -> None:
    """The tolerance of the test above tells one precision from the other."""
    _, compiled = both
    low, high = (of(compiled, GRAPHS[1], where())["forces"] for where in (autocast, nullcontext))
    assert float((low - high).abs().max()) > 2**-6 * float(high.abs().max())


def test_a_program_compiled_under_autocast_is_not_used_without(both: tuple[ToReceivers, DistributedModel]) -> None:
    """Nor do casts of weights stay behind that were made while it was captured."""
    model, _ = both
    with autocast():
        compiled = distcompile.compile(model, GRAPHS[0], world=LocalWorld(2))
        low = model(GRAPHS[1])["forces"].detach()
        torch.testing.assert_close(compiled(GRAPHS[1])["forces"], low, rtol=0, atol=2**-6 * float(low.abs().max()))
        assert compiled.captures == 1
    high = of(model, GRAPHS[1], nullcontext())["forces"]
    torch.testing.assert_close(of(compiled, GRAPHS[1], nullcontext())["forces"], high, rtol=1e-5, atol=1e-6)
    assert compiled.captures == 2
