"""Stock models of further packages: whichever are installed in this environment."""

from __future__ import annotations

from unittest import mock

import pytest
import structures
import zoo
from left_out import OPTIONAL, compiled
from processes import run_ranks

import distcompile
from distcompile import testing
from distcompile.ir.tree import flatten
from distcompile.testing import FLOOR, RELATIVE, check_model


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_model(name: str) -> None:
    """A crystal with a vacancy, a film in vacuum, a cell smaller than the cutoff: one program, 2, 3 and 5 ranks."""
    if not zoo.is_installed(name):
        pytest.skip(f"{zoo.OTHERS[name][0]} is not installed in this environment")
    case = zoo.OTHERS[name][1]()
    graphs = [case.graph(shape()) for shape in (structures.crystal, structures.film, structures.small_cell)]
    report = check_model(case.model, graphs[0], graphs[1:], ranks=(1, 2, 3, 5), model_kwargs=case.kwargs)
    assert report.captures == 1, "one program serves all structures"
    assert report.dtype.startswith("float64" if case.double else "float32")


@pytest.mark.parametrize("name", ["TensorNet", "SevenNet-0", "NequIP", "eSEN"])
def test_without_the_passes_that_save(name: str) -> None:
    """Exact on three ranks with all of them left out."""
    if not zoo.is_installed(name):
        pytest.skip(f"{zoo.OTHERS[name][0]} is not installed in this environment")
    case = zoo.OTHERS[name][1]()
    graphs = [case.graph(atoms) for atoms in (structures.crystal((2, 2, 1)), structures.small_cell())]
    program = compiled(case.model, graphs[0], *OPTIONAL, model_kwargs=case.kwargs)
    with mock.patch.object(testing, "compile", return_value=program):
        check_model(case.model, graphs[0], graphs[1:], (3,), model_kwargs=case.kwargs)


def differences(name: str) -> dict[str, tuple[float, float]]:
    """On a rank of a process group: per output, the difference from the stock model and what is allowed."""
    case = zoo.OTHERS[name][1]()
    graphs = [case.graph(shape()) for shape in (structures.crystal, structures.small_cell)]
    first, other = [g if isinstance(g, tuple) else (g,) for g in graphs]
    model = distcompile.compile(
        case.model, first if len(first) > 1 else first[0], model_kwargs=case.kwargs, validate=False
    )
    found, _ = flatten(model(*other))
    expected, _ = flatten(case.model(*other, **case.kwargs))
    return {
        e.path: (
            float((f.tensor - e.tensor).detach().abs().max()) if e.tensor.numel() else 0.0,
            RELATIVE.get(e.tensor.dtype, 0.0) * max(float(e.tensor.detach().abs().max()), FLOOR),
        )
        for f, e in zip(found, expected, strict=True)
    }


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_two_processes(name: str) -> None:
    """Two gloo processes give what the stock model gives, in every output, on both."""
    if not zoo.is_installed(name):
        pytest.skip(f"{zoo.OTHERS[name][0]} is not installed in this environment")
    for answer in run_ranks(2, differences, name, timeout=300.0):
        assert isinstance(answer, dict), answer
        for output, (difference, allowed) in answer.items():
            assert difference <= allowed, f"{name} {output}"
