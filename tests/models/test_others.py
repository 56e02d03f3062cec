"""Stock models of further packages: whichever are installed in this environment."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import structures
import zoo

from distcompile.testing import check_model

CASES: dict[str, tuple[str, Callable[[], zoo.Case]]] = {
    "TensorNet": ("matgl", lambda: zoo.matgl("TensorNet")),
    "M3GNet": ("matgl", lambda: zoo.matgl("M3GNet")),
    "SO3Net": ("matgl", lambda: zoo.matgl("SO3Net")),
    "CHGNet (matgl)": ("matgl", lambda: zoo.matgl("CHGNet")),
    "SevenNet-0": ("sevenn", zoo.sevennet),
    "NequIP": ("nequip", lambda: zoo.nequip("NequIP")),
    "Allegro": ("allegro", lambda: zoo.nequip("Allegro")),
    "eSEN": ("fairchem", zoo.esen),
}


@pytest.mark.parametrize("name", CASES)
def test_model(name: str) -> None:
    """A crystal with a vacancy, a film in vacuum, a cell smaller than the cutoff: one program, 2, 3 and 5 ranks."""
    package, make = CASES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed in this environment")
    case = make()
    graphs = [case.graph(shape()) for shape in (structures.crystal, structures.film, structures.small_cell)]
    report = check_model(case.model, graphs[0], graphs[1:], ranks=(1, 2, 3, 5), model_kwargs=case.kwargs)
    assert report.captures == 1, "one program serves all structures"
    assert report.dtype.startswith("float64" if case.double else "float32")
