"""Ways to run bodies: operators first and kernels later, on all ranks at the same call; kernels at once; operators."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import toys
from processes import run_ranks

import distcompile
from distcompile import LocalWorld
from distcompile.ir.tree import flatten
from distcompile.model import DistributedModel
from distcompile.passes.lower import lower
from distcompile.predict import fit

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

GRAPH = toys.random_graph(20, 2)


def compiled(lowering: Any, **options: Any) -> tuple[DistributedModel, torch.nn.Module]:
    """A toy model compiled, and the stock one."""
    model = toys.Gnn().eval()
    return distcompile.compile(model, toys.random_graph(14, 1), lowering=lowering, validate=False, **options), model


def largest_difference(found: Any, expected: Any) -> float:
    """Between two results of a model."""
    pairs = zip(flatten(found)[0], flatten(expected)[0], strict=True)
    return max(float((a.tensor - b.tensor).abs().max()) for a, b in pairs)


def has_kernels(model: DistributedModel) -> bool:
    """True if regions run as kernels, as `explain` says."""
    return ", kernel" in model.explain()


def wait_for(condition: Any) -> None:
    """Wait until something holds; a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing was compiled within a minute"
        time.sleep(0.05)


def test_operators_first_and_kernels_once_they_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call after the code is compiled runs it, and the same numbers come out."""
    monkeypatch.setattr(fit, "WORTHWHILE", 0.0)
    model, stock = compiled("auto", world=LocalWorld(2))
    assert largest_difference(model(GRAPH), stock(GRAPH)) < 1e-12
    (executor,) = model._executors
    assert not has_kernels(model)
    wait_for(lambda: executor.fit.is_faster_ready)
    assert not has_kernels(model)
    assert largest_difference(model(GRAPH), stock(GRAPH)) < 1e-12
    assert has_kernels(model)
    assert not executor.fit.is_faster_ready
    assert largest_difference(model(toys.random_graph(9, 3)), stock(toys.random_graph(9, 3))) < 1e-12


def test_short_work_never_waits_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled before evaluations have taken two seconds."""
    monkeypatch.setattr(fit, "WORTHWHILE", 2.0)
    monkeypatch.setattr(lower.library, "loaded", lambda *_: pytest.fail("a compiler was called"))
    model, _ = compiled("auto")
    for _ in range(3):
        model(GRAPH)
    assert not model._executors[0].fit._making


def test_a_failure_beside_leaves_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says so, and results go on."""

    def fails(*_: Any) -> Any:
        raise OSError("the disk is full")

    monkeypatch.setattr(fit, "WORTHWHILE", 0.0)
    monkeypatch.setattr(lower.library, "loaded", fails)
    model, stock = compiled("auto")
    with pytest.warns(UserWarning, match="No kernels were made, so operators go on one by one: the disk is full"):
        model(GRAPH)
        (making,) = model._executors[0].fit._making.values()
        making.thread.join()
    assert largest_difference(model(GRAPH), stock(GRAPH)) < 1e-12
    assert not has_kernels(model)


@pytest.mark.parametrize("lowering", ["kernels", "eager"])
def test_an_explicit_lowering_stays(lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are equal to the last bit from call to call."""
    monkeypatch.setattr(fit, "WORTHWHILE", 0.0)
    model, _ = compiled(lowering)
    first = model(GRAPH)
    assert has_kernels(model) is (lowering == "kernels")
    for _ in range(3):
        assert largest_difference(model(GRAPH), first) == 0.0
    assert not model._executors[0].fit._making


def switched_at(seconds: list[float]) -> int:
    """The call from which on this rank runs kernels, if they are ready after so many seconds."""
    fit.WORTHWHILE = 0.0
    make = DistributedModel._faster

    def late(program: Any) -> Any:
        time.sleep(seconds[dist.get_rank()])
        return make(program)

    DistributedModel._faster = staticmethod(late)  # type: ignore[method-assign]
    try:
        model, stock = compiled("auto")
        for call in range(1000):
            assert largest_difference(model(GRAPH), stock(GRAPH)) < 1e-12
            if has_kernels(model):
                return call
            time.sleep(0.05)
    finally:
        fit.WORTHWHILE = 2.0
        DistributedModel._faster = staticmethod(make)  # type: ignore[method-assign]
    raise AssertionError("no kernels")


def test_ranks_switch_at_the_same_call() -> None:
    """Though the code of one is ready seconds before that of the other."""
    first, second = run_ranks(2, switched_at, [0.0, 2.0])
    assert first == second
    assert first > 10


ENDS_EARLY = """
import toys, distcompile
from distcompile.predict import fit
fit.WORTHWHILE = 0.0
model = distcompile.compile(toys.ThreeBody().eval(), toys.random_graph(14, 1, angles=True), validate=False)
model(toys.random_graph(20, 2, angles=True))
time.sleep({seconds})
"""


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1, 0.5])
def test_a_process_ends_while_kernels_are_made(seconds: float) -> None:
    """It ends well, and soon."""
    script = f"import sys, time; sys.path.insert(0, {str(Path(toys.__file__).parent)!r})" + ENDS_EARLY.format(
        seconds=seconds
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-1000:]
