"""Forecasts from the rows of a few ranks: those that the ranks make in an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import structures
from packages import CUTOFF, Package, within

import distcompile
from distcompile import LocalWorld
from distcompile.app import forecast_shares
from distcompile.app.forecast_shares import counted
from distcompile.calculators.calculator import statistics
from distcompile.layout.structure import structure_of


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_are_those_of_an_evaluation(ranks: int) -> None:
    """Owned and halo rows of each rank, and the predicted memory."""
    atoms = structures.crystal((3, 2, 2))
    atoms.calc = distcompile.distribute(Package(within(CUTOFF)), LocalWorld(ranks), lowering="eager")
    atoms.get_forces()
    expected = statistics(atoms.calc)
    evaluator, _ = atoms.calc.calculate.graphs.last
    own = evaluator.own_rows()
    found, host, held = counted(evaluator, own, structure_of(atoms), ranks)
    for name in ("atoms", "edges"):
        assert found.spaces[name].owned.tolist() == [row["owned"][name] for row in expected]
        assert found.spaces[name].halo.tolist() == [row["halo"][name] for row in expected]
    assert found.memory.tolist() == [row["peak_memory"] - row["graph_memory"] for row in expected]
    assert host.own_rows > 0 and (host.checks > 0) == (ranks > 1) and held > 0
    assert found.spaces["atoms"].reads.sum() == (6 if ranks == 3 else 0)  # all read each other


def test_one_rank_of_many_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank with more atoms than are looked at has as many times their rows."""
    atoms = structures.crystal((4, 4, 2), vacancy=False)
    atoms.calc = distcompile.distribute(Package(within(CUTOFF)), lowering="eager")
    atoms.get_forces()
    evaluator, _ = atoms.calc.calculate.graphs.last
    own, structure = evaluator.own_rows(), structure_of(atoms)
    whole, _, _ = counted(evaluator, own, structure, 1)
    monkeypatch.setattr(forecast_shares, "LARGEST", 64)
    part, _, _ = counted(evaluator, own, structure, 1)
    assert part.spaces["atoms"].owned.tolist() == [256] and part.spaces["atoms"].halo.tolist() == [0]
    np.testing.assert_allclose(part.spaces["edges"].owned, whole.spaces["edges"].owned, rtol=0.05)
