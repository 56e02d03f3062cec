"""Random models on random structures and ranks are the stock model, in outputs and in gradients taken outside."""

from __future__ import annotations

import pytest
from random_programs import ROW_LOCAL, UNDIVIDABLE, case, differences

SEEDS = range(100)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_is_the_stock_model(seed: int) -> None:
    """To 1e-9, on 0 to 40 atoms, 1 to 4 ranks; nothing is refused."""
    assert list(differences(case(seed))) == []


def test_every_step_is_among_them() -> None:
    """Half of the models have one operator that no rule divides."""
    cases = [case(seed) for seed in SEEDS]
    assert {name for c in cases for name in c.names} == ROW_LOCAL.keys() | UNDIVIDABLE.keys()
    assert sum(any(name in UNDIVIDABLE for name in c.names) for c in cases) == len(cases) // 2
    assert {c.ranks for c in cases} == {1, 2, 3, 4}
