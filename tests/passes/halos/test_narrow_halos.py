"""The narrowest form of a value is sent, and the rest is computed from it on halo rows."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def scattered(where: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(like.shape[0], rows.shape[1], dtype=rows.dtype).index_add(0, where, rows)


def widened(x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Sums 3 wide become features 24 wide, which are read."""
    read = (scattered(q, x[p].sin(), x) @ torch.ones(3, 24, dtype=x.dtype))[p]
    return scattered(q, read, x), scattered(q, read.sin(), x)


def narrowed(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Sums 24 wide become 3 wide."""
    wide = torch.cat([x[p].sin()] * 8, 1)
    return (scattered(q, wide, x) + scattered(p, wide.cos(), x)) @ torch.ones(24, 3, dtype=x.dtype)


def of_kinds(x: Tensor, k: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Features of kinds alone."""
    features = torch.eye(3, dtype=x.dtype)[k].tanh()
    read = features[p]
    return scattered(q, read * x[q], features), scattered(q, read.sin(), features)


def test_a_value_crosses_before_it_is_widened() -> None:
    """The product is computed on halo rows, too."""
    holds(
        operators(programs(widened)["narrow_halos"]),
        """
        >> %5: f64[halo of atoms, 3] = halo_gather(%4, atoms_send_rows, atoms_splits, atoms_halo_size, 0)
           %6: f64[3, 24] = full([3, 24], 1, dtype=f64)
           %7: f64[atoms, 24] = mm(%4, %6)
           %8: f64[halo of atoms, 24] = mm(%5, %6)
           %9: f64[atoms+halo, 24] = halo_join(%7, %8, atoms_halo_size, 0)
           %10: f64[edges, 24] = index_select(%9, 0, p)
        """,
    )


def test_a_sum_crosses_after_it_is_narrowed() -> None:
    """What halo rows contribute goes through the product apart from the owner's rows."""
    holds(
        operators(programs(narrowed)["narrow_halos"]),
        """
           %8: f64[atoms, 24] = slice.Tensor(%7, 0, 0, n_atoms)
           %9: f64[halo of atoms, 24] = slice.Tensor(%7, 0, n_atoms, 9223372036854775807)
           %10: f64[24, 3] = full([24, 3], 1, dtype=f64)
           %11: f64[atoms, 3] = mm(%8, %10)
           %12: f64[halo of atoms, 3] = mm(%9, %10)
        >> %13: f64[atoms, 3] = halo_scatter(%12, atoms_send_rows, atoms_splits, %11, 0)
           return [%13]
        """,
    )


def test_what_is_made_of_the_graph_alone_is_not_sent() -> None:
    """Every rank is given the kinds of its halo rows."""
    text = operators(programs(of_kinds)["narrow_halos"])
    assert ">>" in operators(programs(of_kinds)["share_exchanges"])
    assert ">>" not in text
    assert "index.Tensor(%0, [k_halo])" in text
