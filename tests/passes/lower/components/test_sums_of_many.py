"""Sums of many rows in few: each of a million additions in single precision rounds by as much as the sum has grown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from distcompile.runtime.execution.tiles import Add, Reduce, Region, Store

from .bodies import Inputs, Rows, regions

ROWS = 2**20
RESULTS = (
    Store(0, 1),
    Add(0, "sum", by_element=False, reuse=False),
    Add(0, "sum", False, False, after=1),
    Reduce("sum"),
)


def energies(t: Any) -> list[Tensor]:
    """Twice each energy, the energies of structures by the pointer of atoms, once more, and of all atoms."""
    return [t.e * 2, t.structure, t.e, t.structure, t.e, t.e.sum(0)]


@pytest.fixture(params=["operators", "kernel"])
def region(request: pytest.FixtureRequest) -> Callable[[Inputs], Region]:
    return lambda inputs: regions(energies, inputs, RESULTS, block=4096)[request.param == "kernel"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structures", [1, 3])
def test_sums_keep_all_digits(
    structures: int, dtype: torch.dtype, threads: int, region: Callable[[Inputs], Region]
) -> None:
    """One after the other in single precision, these sums are 0.4 % too large."""
    torch.manual_seed(0)
    energy = -3.9 - 0.1 * torch.rand(ROWS, 2, dtype=dtype)
    structure = torch.arange(ROWS) % structures
    run = region({"e": Rows(energy), "structure": Rows(structure)})
    table = torch.ones(structures, 2, dtype=dtype)
    expected = table.double().index_add(0, structure, 2 * energy.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        halves = run(ROWS, energy, structure, table, only=(0, ROWS // 2))
        results = (
            run(ROWS, energy, structure, table),
            run(ROWS, energy, structure, table, only=(ROWS // 2, ROWS), so_far=halves),
        )
    finally:
        torch.set_num_threads(before)
    for stored, of_structures, again, of_all in results:
        assert torch.equal(stored, 2 * energy)
        assert of_structures.dtype == of_all.dtype == dtype
        assert again is of_structures
        tolerance = {"rtol": 3e-7 if dtype == torch.float32 else 1e-12, "atol": 0}
        torch.testing.assert_close(of_structures.double(), expected, **tolerance)
        torch.testing.assert_close(of_all.double(), energy.double().sum(0), **tolerance)
    assert torch.equal(table, torch.ones_like(table)), "the table was not to be changed"
