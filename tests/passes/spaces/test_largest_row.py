"""Tables as long as the largest row number says, where nothing points at the last rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from adversaries import Toy, add_to
from grids import some_alone
from torch import Tensor
from toys import Graph

import distcompile
from distcompile import LocalWorld
from distcompile.errors import InputError
from distcompile.testing import check_model


class Summed(Toy):
    """A sum into a table up to the largest receiver, of which something is made for each edge."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        rows = int(receiver.max()) + 1
        table = w.new_zeros(rows, w.shape[1]).index_add(0, receiver, w * h[sender])
        return torch.tanh(self.mix(h + add_to(w * self.use(table, receiver), receiver, h)))


@pytest.mark.parametrize("use", [
    lambda t, p: t[p],
    lambda t, p: (t / (1 + t.square()))[p] + t.square()[p],
    lambda t, p: torch.cat([t, t.sin()], 1)[p, : t.shape[1]],
])  # fmt: skip
def test_what_nothing_points_at_does_not_matter(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    first, *others = some_alone()
    check_model(Summed(use).eval(), first, others, (1, 2, 3), relative=1e-12)


@pytest.mark.parametrize("use", [
    lambda t, p: torch.cat([t, t.sin()])[len(t) + p],
    lambda t, p: t.repeat(2, 1)[len(t) + p],
    lambda t, p: torch.stack([t, t.sin()]).reshape(-1, t.shape[1])[len(t) + p],
    lambda t, p: (t * torch.arange(len(t))[:, None])[p],
    lambda t, p: t[torch.arange(len(t)).flip(0)][p],
    lambda t, p: (t - t.mean(0))[p],
    lambda t, p: t[p] + t.sum(0),
])  # fmt: skip
def test_a_table_that_is_used_whole_must_be_whole(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Its length matters: either it is the number of atoms, and all is exact, or the graph is refused."""
    first, *others = some_alone()
    model = Summed(use).eval()
    dmodel = distcompile.compile(model, first, world=LocalWorld(2), validate=False)
    found, expected = dmodel(first), model(first)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)
    for graph in others:
        with pytest.raises(InputError, match=r"largest row number of a list says, which is \d+"):
            dmodel(graph)
