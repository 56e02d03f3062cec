"""What a capture learns about a model for the next one."""

from __future__ import annotations

import torch
from torch import Tensor
from toys import Gnn, Graph, Result, random_graph

import distcompile
from distcompile.testing import check_model

WENT: list[str] = []
"""Calls; what a model keeps in its attributes is taken out again after a capture."""


class Averaging(Gnn):
    """Counts edges of atoms: that there are as many counts as atoms shows in a capture, and helps the next one."""

    def forward(self, graph: Graph) -> Result:
        WENT.append("begun")
        result = super().forward(graph)
        WENT.append("ended")
        return result

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        energy, energies = super().energy(graph, vectors, lengths)
        assert energies is not None
        counts, n = torch.bincount(graph["edge_index"][1]), graph["positions"].shape[0]
        if counts.shape[0] != n:  # the last atoms receive nothing
            counts = torch.cat([counts, counts.new_zeros(n - counts.shape[0])])
        return energy + (energies / (1 + counts)).sum(), energies


def test_gradients_are_followed_once() -> None:
    """They are most of a capture. The one that is done again ends before them, and what it learnt is right."""
    WENT.clear()
    distcompile.compile(Averaging().eval(), random_graph(12, 1), validate=False)
    assert WENT == ["begun", "begun", "ended"]


def test_a_model_that_catches_what_it_can_is_captured() -> None:
    """The end of a capture is no exception that a model's code handles."""

    class Careful(Averaging):
        def forward(self, graph: Graph) -> Result:
            try:
                return super().forward(graph)
            except Exception:
                return {"energy": torch.zeros(())}

    check_model(Careful().eval(), random_graph(12, 1), random_graph(19, 2))
