"""Products with gathered rows, and of rows that are scattered: computed once for each row of the table."""

from __future__ import annotations

import pytest
import torch
from adversaries.toy import F, Toy, add_to
from rewriting import keeps, rewrites
from torch import Tensor
from toys import Graph, random_graph

from distcompile import LocalWorld
from distcompile.api import compiled_for
from distcompile.model import Settings
from distcompile.passes.simplify.linear_through_gather import linear_through_gather
from distcompile.testing import check_model

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Of features side by side, what was gathered is multiplied first, and what was not afterwards.
        (
            "mm(cat([index_select(x, 0, p), v], 1), cat([u, 2 * u]))",
            "index_select(mm(x, slice(cat([u, 2 * u]), 0, 0, 3)), 0, p) + mm(v, slice(cat([u, 2 * u]), 0, 3, 6))",
        ),
        # A bias is added at the end.
        ("addmm(g, index_select(x, 0, p), u)", "index_select(mm(x, u), 0, p) + g"),
        # A sum of products is scattered in parts; so are the columns of one that are read apart.
        (
            "index_add(zeros(n, 3), 0, p, mm(v, u) + mm(2 * v, u))",
            "mm(index_add(zeros(n, 3), 0, p, v), u) + mm(index_add(zeros(n, 3), 0, p, 2 * v), u)",
        ),
        (
            "index_add(zeros(n, 2), 0, p, slice(mm(v, u), 1, 0, 2))",
            "mm(index_add(zeros(n, 3), 0, p, v), slice(u, 1, 0, 2))",
        ),
    ],
)
def test_products_come_before_gathers_and_after_scatters(before: str, after: str) -> None:
    rewrites(linear_through_gather, before, after)


@pytest.mark.parametrize(
    "unchanged",
    [
        "mm(index_select(v, 0, f), u)",  # more rows than the pointer has
        "index_add(x, 0, p, mm(v, u))",  # the table holds something already
        "mm(silu(index_select(x, 0, p)), u)",  # not linear
        "mm(index_select(x, 0, p)[:, 0:1], u[0:1].expand(1, 3).repeat(1, 2))",  # more columns than there were features
    ],
)
def test_what_would_be_more_work_or_wrong_stays(unchanged: str) -> None:
    keeps(linear_through_gather, unchanged)


class Layer(Toy):
    """A layer over edges that is given features of both atoms and of the edge, as graph networks have it."""

    def more(self) -> None:
        self.both = torch.nn.Linear(2 * F + 3, F)
        self.gate = torch.nn.Linear(2 * F + 3, F)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            joined = torch.cat([h[sender], h[receiver], vectors], 1)
            h = h + add_to(w * self.both(joined).tanh() * self.gate(joined).sigmoid(), receiver, h)
        return h


def test_a_layer_on_any_number_of_ranks() -> None:
    """Energies, forces and gradients of weights as stock; products over edges are of what belongs to edges alone."""
    model = Layer().double().eval()
    graph = random_graph(14, 1)
    check_model(model, graph, ranks=(1, 2, 3))
    compiled, _ = compiled_for(model, graph, Settings(world=LocalWorld(2)))
    program = compiled.program
    edges = program.space("edges").symbol
    products = [n for n in compiled.graph_module.graph.nodes if n.target is aten.mm.default]
    terms = [program.shape(n.args[0])[1] for n in products if program.shape(n)[0] == edges]
    assert terms
    assert max(terms) <= F
