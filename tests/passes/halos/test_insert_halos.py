"""A pointer that may leave the rank is read from halo rows, or added to them; one that stays needs nothing."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def gather(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Edges follow q, through which they add twice."""
    zeros = torch.zeros_like(x)
    return zeros.index_add(0, q, x[p]), zeros.index_add(0, q, x[p].sin())


def scatter(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Edges follow p, through which they read."""
    return torch.zeros_like(x).index_add(0, q, x[p])


def test_a_table_is_exchanged_before_it_is_read() -> None:
    """Through q nothing crosses."""
    holds(
        operators(programs(gather)["insert_halos"]),
        """
           %0: f64[atoms, 3] = full([n_atoms, 3], 0, dtype=f64)
        >> %1: f64[atoms+halo, 3] = halo_exchange(x, atoms_send_rows, atoms_splits, atoms_halo_size, 0)
           %2: f64[edges, 3] = index_select(%1, 0, p)
           %3: f64[atoms, 3] = index_add(%0, 0, q, %2)
           %4: f64[edges, 3] = sin(%2)
           %5: f64[atoms, 3] = index_add(%0, 0, q, %4)
           return [%3, %5]
        """,
    )


def test_a_sum_is_completed_after_it_was_made() -> None:
    """The table gets halo rows, whose sums go back to their owners."""
    holds(
        operators(programs(scatter)["insert_halos"]),
        """
           %0: f64[atoms, 3] = full([n_atoms, 3], 0, dtype=f64)
           %1: f64[edges, 3] = index_select(x, 0, p)
           %2: f64[atoms+halo, 3] = constant_pad_nd(%0, [0, 0, 0, atoms_halo_size])
           %3: f64[atoms+halo, 3] = index_add(%2, 0, q, %1)
        >> %4: f64[atoms, 3] = halo_reduce(%3, atoms_send_rows, atoms_splits, atoms_halo_size, 0)
           return [%4]
        """,
    )


def test_the_runtime_is_asked_how_many_rows_stay() -> None:
    """Those rows come first; and it is asked for the plan of the halo."""
    inputs = [(i.name, i.kind, str(i.space)) for i in programs(scatter)["insert_halos"].inputs[-4:]]
    assert inputs == [
        ("edges_interior", "interior", "edges"),
        ("atoms_send_rows", "send_rows", "atoms"),
        ("atoms_splits", "splits", "atoms"),
        ("atoms_halo_size", "halo_size", "atoms"),
    ]
