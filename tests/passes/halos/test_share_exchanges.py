"""Each value is exchanged once, however many pointers read it."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def model(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """Two pointers leave the rank."""
    zeros = torch.zeros_like(x)
    read = (x[p], x[p.flip(0)].sin(), x[p].cos())
    return tuple(zeros.index_add(0, q, rows) for rows in read)


def test_the_second_exchange_is_the_first() -> None:
    """It stands before the first gather."""
    assert operators(programs(model)["insert_halos"]).count("halo_exchange") == 2
    found = operators(programs(model)["share_exchanges"])
    assert found.count("halo_exchange") == 1
    holds(
        found,
        """
        >> %1: f64[atoms+halo, 3] = halo_exchange(x, atoms_send_rows, atoms_splits, atoms_halo_size, 0)
           %2: f64[edges, 3] = index_select(%1, 0, p)
           %3: f64[edges, 3] = index_select(%1, 0, p_1)
        """,
    )
