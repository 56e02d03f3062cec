"""Values of the graph's integers are computed once for each kind of row, and looked up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adversaries.toy import F, Toy, add_to
from printed import holds, operators, programs
from torch import Tensor, nn
from toys import N_SPECIES, Graph, Result, random_graph

import distcompile
from distcompile import LocalWorld
from distcompile.api import compiled_for
from distcompile.ir import META
from distcompile.model import Settings
from distcompile.runtime.operators.kinds import kinds
from distcompile.testing import check_model

aten = torch.ops.aten
WIDE = 64


def of_kinds(x: Tensor, k: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Weights of a kind of atom: a matrix for each."""
    features = torch.eye(3, 64, dtype=x.dtype)[k] @ torch.ones(64, 24, dtype=x.dtype)
    weighted = (features.reshape(-1, 8, 3) * x[:, None]).sum(1)
    return torch.zeros_like(x).index_add(0, q, weighted[p])


def narrow(x: Tensor, k: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A row of a table for each kind of atom, scaled."""
    weighted = torch.eye(3, dtype=x.dtype)[k] * 2 * x
    return torch.zeros_like(x).index_add(0, q, weighted[p])


def test_a_product_is_of_kinds() -> None:
    """The matrix product has a row for each kind of atom, which is whole on every rank."""
    holds(
        operators(programs(of_kinds)["once_per_kind"]),
        """
           %1: f64[s2, 64] = index.Tensor(%0, [k_of_kinds])
           %2: f64[64, 24] = full([64, 24], 1, dtype=f64)
           %3: f64[s2, 24] = mm(%1, %2)
           %4: f64[atoms, 24] = index_select(%3, 0, kind_of_atoms)
        """,
    )


def test_what_costs_no_more_than_a_lookup_stays() -> None:
    assert operators(programs(narrow)["once_per_kind"]) == operators(programs(narrow)["place"])


def numbered(x: Tensor, k: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """A page of work for each row, made of its number."""
    number = torch.arange(len(x), dtype=torch.int64)
    features = number[:, None].to(x.dtype) @ torch.ones(1, 64, dtype=x.dtype)
    weighted = x * (features.tanh() @ torch.ones(64, 64, dtype=x.dtype)).sum(1, keepdim=True)
    return torch.zeros_like(x).index_add(0, q, weighted[p])


def test_row_numbers_are_no_kinds() -> None:
    """They all differ, and a rank would compute the rows of all others."""
    assert operators(programs(numbered)["once_per_kind"]) == operators(programs(numbered)["place"])


class OfSpecies(Toy):
    """Weights of an atom from its species, and of an edge from the species at both ends, by integers."""

    def more(self) -> None:
        self.wide = nn.Linear(WIDE, F * F)
        self.outer = nn.Parameter(torch.empty(WIDE, F, F))
        self.attributes = nn.Embedding(N_SPECIES, WIDE)
        self.pairs = nn.Embedding(N_SPECIES**2, WIDE)
        self.of_pairs = nn.Sequential(nn.Linear(WIDE, WIDE), nn.SiLU(), nn.Linear(WIDE, F))

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        species = graph["species"]
        pair = species[sender] * N_SPECIES + species[receiver]
        attributes, of_pairs = self.attributes(species), self.of_pairs(self.pairs(pair))
        matrices = self.wide(torch.tanh(attributes)).view(-1, F, F)
        h = self.mix(h)
        for _ in range(2):
            h = h + 0.1 * torch.tanh(add_to(h[sender] * w * of_pairs, receiver, h))
            outer = attributes[:, :, None] * h[:, None, :]
            mixed = outer.reshape(-1, WIDE * F) @ self.outer.view(WIDE * F, F)
            h = torch.tanh(h + mixed + torch.bmm(matrices, h[:, :, None]).squeeze(-1))
        return h


MODEL = OfSpecies().double().eval()


def species_as(graph: Graph, species: list[int] | int) -> Graph:
    """The same graph with other species."""
    n = len(graph["species"])
    values = [species] * n if isinstance(species, int) else species
    return {**graph, "species": torch.tensor(values, dtype=torch.int64)}


GRAPHS = {
    "more atoms": random_graph(23, 2),
    "one species": species_as(random_graph(9, 3), 1),
    "one atom": random_graph(1, 4),
    "no neighbours": random_graph(3, 5, volume=1e4),
}


@pytest.mark.parametrize("lowering", ["eager", "kernels"])
def test_any_number_of_ranks(lowering: str) -> None:
    """Energy, forces and stress as the stock model's; some of five ranks have no atoms."""
    compiled, _ = compiled_for(MODEL, random_graph(14, 1), Settings(world=LocalWorld(1), lowering=lowering))  # type: ignore[arg-type]
    names = [s.name for s in compiled.program.spaces]
    assert names == ["atoms", "edges", "kinds of atoms", "kinds of edges"]
    for ranks in (1, 2, 3, 5):
        settings = Settings(world=LocalWorld(ranks), lowering=lowering)  # type: ignore[arg-type]
        compiled, _ = compiled_for(MODEL, random_graph(14, 1), settings)
        for name, graph in GRAPHS.items():
            _same(compiled(graph), MODEL(graph), f"{name} on {ranks} ranks")


def _same(found: Result, expected: Result, where: str) -> None:
    for name, value in expected.items():
        scale = max(float(value.detach().abs().max()), 1e-3)
        assert float((found[name] - value).detach().abs().max()) < 1e-9 * scale, f"{name}: {where}"


def test_products_of_species_have_few_rows() -> None:
    """No product with rows of atoms or edges is left that is made of species alone, forward or backward."""
    compiled, _ = compiled_for(MODEL, random_graph(14, 1), Settings(world=LocalWorld(2)))
    products = [n for n in compiled.graph_module.graph.nodes if n.target is aten.mm.default]
    widths = {int(n.meta["val"].shape[1]) for n in products if n.meta[META].sharded}
    assert F * F not in widths
    assert WIDE * F not in widths
    looked_up = [n for n in compiled.graph_module.graph.nodes if "kind_of" in str(n.args)]
    assert {int(n.meta["val"].shape[1]) for n in looked_up} == {F, F * F}


def test_the_checks_of_the_package() -> None:
    check_model(MODEL, random_graph(14, 1), random_graph(20, 2), ranks=(1, 2, 3))


class Numbered(OfSpecies):
    """Each atom is of a species of its own."""

    def more(self) -> None:
        super().more()
        self.embedding, self.attributes = nn.Embedding(64, F), nn.Embedding(64, WIDE)
        self.pairs = nn.Embedding(64 * N_SPECIES + 64, WIDE)


def test_all_rows_different() -> None:
    """There are as many kinds as atoms then."""
    model = Numbered().double().eval()
    graphs = [species_as(g, list(range(len(g["species"])))) for g in (random_graph(14, 1), random_graph(23, 2))]
    check_model(model, graphs[0], graphs[1], ranks=(1, 2, 3))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_from_outside(ranks: int) -> None:
    """Of energy and forces by weights, among them those of species."""
    model = OfSpecies().double().train()
    example, graph = random_graph(14, 1), random_graph(19, 2)
    compiled = distcompile.compile(model, example, world=LocalWorld(ranks))
    found, expected = [_gradients(call, model, graph) for call in (compiled, model)]
    for (name, _), mine, theirs in zip(model.named_parameters(), found, expected, strict=True):
        assert float(theirs.abs().max()) > 1e-6, f"{name} has no gradient"
        assert float((mine - theirs).abs().max()) < 1e-9 * max(float(theirs.abs().max()), 1e-3), name


def _gradients(call: Any, model: nn.Module, graph: Graph) -> tuple[Tensor, ...]:
    result = call(graph)
    loss = result["energy"] ** 2 + result["forces"].square().sum()
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_within(ranks: int) -> None:
    """A function that returns gradients by weights."""
    model = OfSpecies().double().train()
    weights = [model.wide.weight, model.outer, model.attributes.weight, model.pairs.weight]

    def gradients(graph: Graph) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(graph)["energy"], weights)

    check_model(gradients, random_graph(14, 1), random_graph(19, 2), ranks=(ranks,))


def test_new_weights_are_used() -> None:
    """Rows of kinds are not kept from call to call."""
    model, graph = OfSpecies().double().eval(), random_graph(14, 1)
    compiled = distcompile.compile(model, graph)
    before = compiled(graph)["energy"]
    with torch.no_grad():
        model.wide.weight += 0.1
        model.outer *= 1.5
    _same(compiled(graph), model(graph), "after a change")
    assert abs(float(before - compiled(graph)["energy"])) > 1e-3


def test_explain_names_the_kinds() -> None:
    compiled = distcompile.compile(MODEL, random_graph(14, 1))
    assert "kinds of atoms whole on every rank" in compiled.explain()
    assert "once_per_kind" in compiled.explain(detail=True)


@pytest.mark.parametrize(
    ("columns", "count"),
    [
        ([[3, 1, 3, 1, 1]], 2),
        ([[7, 7, 7]], 1),
        ([[5, -(10**12), 10**15]], 3),  # no table of all values between them
        ([[0, 0, 1, 1, 0], [4, 5, 4, 5, 4]], 4),
        ([[0, 2**61, 0, 1], [-(2**61), 5, -(2**61), 5]], 3),  # no number is made of both
        ([[-(2**63), 2**63 - 1, 0, 0], [1, 1, 1, 2]], 4),
        ([[[0, 1], [1, 0], [0, 1]], [2, 2, 2]], 2),
        ([[True, False, True]], 2),
        ([[]], 0),
    ],
)
def test_kinds_of_rows(columns: list[Any], count: int) -> None:
    """A row of each kind, and the kind of each row: together they give all columns again."""
    given = [torch.tensor(c, dtype=torch.bool if c and isinstance(c[0], bool) else torch.int64) for c in columns]
    example, kind = kinds(given)
    assert example.shape == (count,)
    assert all(torch.equal(column[example][kind], column) for column in given)
    assert sorted(set(kind.tolist())) == list(range(count))
