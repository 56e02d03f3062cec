"""Lists that a model joins are spaces of blocks, whose rows live where those of the lists do."""

from __future__ import annotations

import torch
from printed import header, holds, programs
from torch import Tensor


def both_ways(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Each edge once more, the other way round."""
    p2, q2 = torch.cat([p, q]), torch.cat([q, p])
    near = (x[p] - x[q]).exp()  # p and q run over the same edges
    return torch.zeros_like(x).index_add(0, q2, x[p2].exp()) + near.sum()


def with_loops(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Edges, then an edge of each atom to itself."""
    own = torch.arange(x.shape[0])
    p2, q2 = torch.cat([p, own]), torch.cat([q, own])
    return torch.zeros_like(x).index_add(0, q2, x[p2].exp())


def test_edges_in_both_directions() -> None:
    """One space of edges and edges, which both pointers run over."""
    placed = programs(both_ways)["infer_spaces"]
    (joined,) = [space for space in placed.spaces if space.blocks]
    assert [block.name for block in joined.blocks] == ["edges", "edges"]
    assert joined.symbol == 2 * placed.space("edges").symbol
    assert {p.source.name for p in placed.pointers if p.target.name == "atoms"} >= {joined.name}


def test_edges_and_atoms() -> None:
    """In the order in which they are joined."""
    placed = programs(with_loops)["infer_spaces"]
    (joined,) = [space for space in placed.spaces if space.blocks]
    assert [block.name for block in joined.blocks] == ["edges", "atoms"]
    holds(
        header(programs(with_loops)["infer_spaces"]),
        """
        spaces
          atoms
        """,
    )
