"""What models do every day is divided, exact, and differentiated exactly; other branches are noticed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from everyday import EVERYDAY
from torch import Tensor
from toys import Graph, random_graph
from undividable import Given

import distcompile
from distcompile import LocalWorld
from distcompile.predict.account import stretches
from distcompile.testing import check_model

EXAMPLE, *OTHERS = (random_graph(n, seed) for n, seed in ((10, 0), (17, 1), (24, 3)))


@pytest.mark.parametrize("name", EVERYDAY)
def test_it_is_divided_and_exact(name: str) -> None:
    """Energy, forces and stress on 1, 2, 3 and 5 ranks; nothing runs whole."""
    model = Given(EVERYDAY[name]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        report = check_model(model, EXAMPLE, OTHERS, ranks=(1, 2, 3, 5), relative=2e-12)
    assert report.captures == 1


@pytest.mark.parametrize("name", EVERYDAY)
def test_gradients_of_weights_and_positions(name: str) -> None:
    """Of a loss on energy and forces, on 2 ranks: tables that atoms look up among the weights."""
    model = Given(EVERYDAY[name]).train()
    compiled = distcompile.compile(model, EXAMPLE, world=LocalWorld(2), validate=False)
    assert not stretches(compiled.program), "what is differentiated twice is divided, too"

    def gradients(m: object) -> list[Tensor]:
        graph = {**OTHERS[0], "positions": OTHERS[0]["positions"].clone().requires_grad_()}
        result = m(graph)  # type: ignore[operator]
        by = [graph["positions"], *model.parameters()]
        found = torch.autograd.grad((result["forces"] ** 2).sum() + result["energy"], by, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(by, found, strict=True)]

    for a, b in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, float(b.abs().max())))


def of_species(graph: Graph, species: list[int]) -> Graph:
    n = len(graph["positions"])
    return {**graph, "species": torch.tensor(species)[torch.arange(n) % len(species)]}


@pytest.mark.parametrize("first", [[0, 1], [0, 1, 2], [1]])
def test_a_graph_of_more_or_fewer_species_than_a_loop_was_captured_for(first: list[int]) -> None:
    """How many there are decides how often the loop runs: each number has a program, none is served by another's."""
    model = Given(EVERYDAY["species in a loop"]).eval()
    compiled = distcompile.compile(model, of_species(EXAMPLE, first), world=LocalWorld(2))
    for species in ([0, 1], [2], [0, 1, 2], [1], [1, 2], [0, 1, 2]):
        graph = of_species(OTHERS[0], species)
        for key, value in model(graph).items():
            torch.testing.assert_close(compiled(graph)[key], value.detach(), rtol=1e-10, atol=1e-11)
    assert compiled.captures == 3


@pytest.mark.parametrize(
    "scatter", [torch.scatter_add, Tensor.scatter_add_, lambda *a: torch.scatter_reduce(*a, "amax")]
)
def test_a_list_that_says_only_where_elements_go_is_as_long_as_they_are(scatter: Callable[..., Tensor]) -> None:
    """torch allows it to be shorter, so nothing but the example says that it has an entry for each atom."""

    def energies(graph: Graph) -> Tensor:
        sender, receiver = graph["edge_index"]
        lengths = (graph["positions"][sender] - graph["positions"][receiver]).norm(dim=1)
        each = torch.zeros(len(graph["positions"]), dtype=lengths.dtype).index_add(0, receiver, lengths.sin())
        return scatter(torch.zeros(2, dtype=lengths.dtype), 0, graph["half"], each)

    example, *others = ({**g, "half": torch.arange(len(g["positions"])) % 2} for g in (EXAMPLE, *OTHERS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert check_model(energies, example, others, ranks=(1, 3), relative=2e-12).captures == 1
