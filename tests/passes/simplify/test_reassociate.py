"""Products of features, a small factor and a table: the small factor meets the table first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from adversaries import Toy, add_to
from torch import Tensor, fx, nn
from toys import Graph, random_graph

import distcompile
from distcompile.testing import check_model

aten = torch.ops.aten
CHANNELS, A, B = 6, 3, 5


class Coupled(Toy):
    """Messages couple vector features of the sender with five functions of the edge vector through tables."""

    def __init__(self, couple: Callable[[Tensor, Tensor, Tensor], Tensor], widths: tuple[int, ...] = (3, 7)) -> None:
        self.widths = widths
        super().__init__()
        self.couple = couple

    def more(self) -> None:
        generator = torch.Generator().manual_seed(3)
        for width in self.widths:
            self.register_buffer(f"table_{width}", torch.randn(A * B, width, generator=generator, dtype=torch.float64))
        self.lift = nn.Linear(CHANNELS, CHANNELS * A)

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        small = torch.cat([vectors, vectors[:, :2] * vectors[:, 1:]], 1)  # [n_edges, 5]
        for _ in range(2):
            features = self.lift(h).view(-1, CHANNELS, A)
            features = torch.tanh(add_to(features[sender] * w[:, :, None], receiver, features))
            for width in self.widths:
                message = self.couple(features[sender], small, self.get_buffer(f"table_{width}"))
                h = h + 0.1 * torch.tanh(add_to(message, receiver, h[:, :, None].expand(-1, -1, width)).sum(-1))
        return h


def outer_then_table(features: Tensor, small: Tensor, table: Tensor) -> Tensor:
    """As tensor products are written: [n, c, a], [n, b], [a*b, k] -> [n, c, k]."""
    outer = features[:, :, :, None] * small[:, None, None, :]
    return (outer.reshape(-1, A * B) @ table).view(len(features), CHANNELS, -1)


def small_first_in_table(features: Tensor, small: Tensor, table: Tensor) -> Tensor:
    """The same with the dimensions of the table the other way round."""
    outer = small[:, None, :, None] * features[:, :, None, :]
    return (outer.reshape(-1, A * B) @ table).view(len(features), CHANNELS, -1)


def channels_in_both(features: Tensor, small: Tensor, table: Tensor) -> Tensor:
    """The factor has channels too, so nothing is gained."""
    outer = features[:, :, :, None] * (small[:, None, None, :] * features.sum(-1)[:, :, None, None])
    return (outer.reshape(-1, A * B) @ table).view(len(features), CHANNELS, -1)


def rows_of_table_products(graph: fx.Graph) -> int:
    """Matrix products whose rows are the channels of all edges and whose inner size is the table's."""
    return sum(n.target is aten.mm.default and n.args[0].meta["val"].shape[1] == A * B for n in graph.nodes)


@pytest.mark.parametrize("couple", [outer_then_table, small_first_in_table, channels_in_both])
@pytest.mark.parametrize("training", [False, True])
def test_the_same_numbers(couple: Callable[[Tensor, Tensor, Tensor], Tensor], training: bool) -> None:
    """As the stock model, on 1, 2 and 3 ranks, at two sizes."""
    model = Coupled(couple).train(training)
    report = check_model(model, random_graph(12), random_graph(17), ranks=(1, 2, 3))
    assert report.worst < 1e-12


@pytest.mark.parametrize("couple", [outer_then_table, small_first_in_table])
def test_the_outer_product_is_gone(couple: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Forward and backward: nothing has a row for each channel and an entry for each pair."""
    graph = distcompile.compile(Coupled(couple), random_graph(12)).program.graph.graph
    wide = [
        n
        for n in graph.nodes
        if isinstance(n.meta.get("val"), Tensor)
        and n.meta["val"].dim() >= 3
        and n.meta["val"].shape[1] == CHANNELS
        and n.meta["val"][0, 0].numel() == A * B
    ]
    assert not wide
    batched = [
        n for n in graph.nodes if n.target is aten.bmm.default and isinstance(n.meta["val"].shape[0], torch.SymInt)
    ]
    assert len(batched) >= 3 * 2 * 2  # forward and both gradients, of two tables in two layers


def test_a_factor_with_channels_is_left_alone() -> None:
    """Where the order makes no difference in cost, it stays the model's."""
    compiled = distcompile.compile(Coupled(channels_in_both, widths=(3,)), random_graph(12))
    assert rows_of_table_products(compiled.program.graph.graph) == 2


class OfSpecies(Toy):
    """Features of an atom are multiplied with weights of its species, as a product with a one-hot that is an input."""

    def more(self) -> None:
        self.weights = nn.Parameter(torch.randn(CHANNELS * A, CHANNELS, dtype=torch.float64))

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        for _ in range(2):
            outer = h[:, :, None] * graph["one_hot"][:, None, :]
            h = torch.tanh(outer.reshape(-1, CHANNELS * A) @ self.weights)
            h = add_to(h[sender] * w, receiver, h)
        return h


def with_one_hot(atoms: int) -> Graph:
    graph = random_graph(atoms)
    return {**graph, "one_hot": torch.nn.functional.one_hot(torch.arange(atoms) % A, A).double()}


@pytest.mark.parametrize("training", [False, True])
def test_weights_of_species_meet_the_outer_product(training: bool) -> None:
    """Forward and backward, the one-hot is in the factor of the product, whose zeros kernels leave out."""
    model = OfSpecies().train(training)
    report = check_model(model, with_one_hot(12), with_one_hot(17), ranks=(1, 2, 3))
    assert report.worst < 1e-12
    graph = distcompile.compile(model, with_one_hot(12)).program.graph.graph
    products = [
        n for n in graph.nodes if n.target is aten.mm.default and n.args[1].meta["val"].numel() == A * CHANNELS**2
    ]
    assert [tuple(n.args[1].meta["val"].shape) for n in products] == [(CHANNELS * A, CHANNELS)] * 4


def test_gradients_of_gradients() -> None:
    """Training on forces differentiates the rewritten program again."""
    model = Coupled(outer_then_table).train()
    compiled = distcompile.compile(model, random_graph(12))
    graph = random_graph(14)
    found, expected = [
        torch.autograd.grad(call(graph)["forces"].square().sum(), list(model.parameters()), allow_unused=True)
        for call in (compiled, model)
    ]
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None) or not theirs.any()
        if theirs is not None and mine is not None:
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
