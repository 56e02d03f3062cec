"""Of a sum through one pointer the rows that it points at cross, and no others of the halo."""

from __future__ import annotations

import torch
from printed import holds, operators, programs
from torch import Tensor


def model(x: Tensor, p: Tensor, q: Tensor, f: Tensor, f2: Tensor) -> Tensor:
    """Edges sum what angles say through f, and are read through f2."""
    d = x[p] - x[q]
    s = torch.zeros_like(d).index_add(0, f, d[f].sin())
    b = torch.zeros_like(d).index_add(0, f, s.cos()[f2] * d[f])
    return torch.zeros_like(x).index_add(0, q, b * d)


def test_rows_that_were_added_to() -> None:
    """The plan is one of some rows, with their places among the halo rows."""
    before, after = (operators(programs(model)[name]) for name in ("narrow_halos", "thin_messages"))
    holds(
        before,
        ">> %8: f64[halo of edges, 3] = halo_gather(%7, edges_send_rows, edges_splits, edges_halo_size, 0)",
    )
    plan = "edges_of_f_send_rows, edges_of_f_splits, edges_halo_size, 0, edges_of_f_places"
    holds(after, f">> %8: f64[halo of edges, 3] = halo_gather(%7, {plan})")
    changed = [a for a, b in zip(after.splitlines(), before.splitlines(), strict=True) if a != b]
    assert len(changed) == 1


def test_the_space_of_some_rows_is_noted() -> None:
    """For the runtime, which counts them."""
    (some,) = programs(model)["thin_messages"].thinned_spaces
    assert (str(some.some_of), some.through) == ("edges", ("f",))
