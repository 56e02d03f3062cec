"""Garbage collection around a capture."""

import gc
from collections.abc import Iterator

import pytest
import toys

import distcompile
from distcompile.capture import trace as capture
from distcompile.capture.garbage import SELDOM


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("set_by_user", "meanwhile"),
    [((700, 10, 10), SELDOM), ((0, 10, 10), (0, 10, 10)), ((90_000, 5, 5), (90_000, 5, 5))],
)
def test_cycles_are_looked_for_less_often(
    set_by_user: tuple[int, int, int], meanwhile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a model is captured, and only then, unless the user set more or none."""
    seen = []
    stock = capture._functionalize
    monkeypatch.setattr(capture, "_functionalize", lambda trace: (seen.append(gc.get_threshold()), stock(trace))[1])
    gc.set_threshold(*set_by_user)
    distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), validate=False)
    assert seen == [meanwhile]
    assert gc.get_threshold() == set_by_user
