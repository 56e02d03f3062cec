"""Features that a model cuts into parts: their gradient is put side by side again, not added up padded with zeros."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from adversaries import Toy, add_to
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from toys import Graph, random_graph

from distcompile import LocalWorld, testing
from distcompile.api import compiled_for
from distcompile.ir import Normal
from distcompile.model import Settings
from distcompile.passes.simplify.join_parts import join_parts
from distcompile.testing import check_model

aten = torch.ops.aten
PADDED = (aten.slice_backward.default, aten.select_backward.default)


class Part(NamedTuple):
    """Columns that are used by themselves."""

    start: int
    end: int
    column: bool = False
    """Taken as a column, without its dimension."""

    def of(self, features: Tensor, dim: int = 1) -> Tensor:
        """The part of some features."""
        if self.column:
            return features.select(dim, self.start)
        return features.narrow(dim, self.start, self.end - self.start)


def column(at: int) -> Part:
    """One column of 6, counted from either end."""
    return Part(at, at % 6 + 1, True)


def counts(graph: fx.Graph) -> Counter[Any]:
    """How often each operator occurs."""
    return Counter(n.target for n in graph.nodes if n.op == "call_function")


def padded(graph: fx.Graph) -> int:
    """How many tensors are a part and zeros around it."""
    return sum(counts(graph)[target] for target in PADDED)


class Cut(Toy):
    """Messages whose columns are used part by part, each in its own way, and summed at the receiver."""

    def __init__(self, cut: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.cut = cut

    def update(self, graph: Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        cut = [p if p.dim() == 2 else p[:, None] for p in self.cut(w * h[sender])]
        used = torch.stack([(0.3 * (i + 1) * p).sin().sum(1) for i, p in enumerate(cut)])
        return torch.tanh(self.mix(h + add_to(used.sum(0)[:, None].expand(-1, h.shape[1]), receiver, h)))


def nested(m: Tensor) -> list[Tensor]:
    """Parts that are cut again, in another dimension too."""
    left, right = m[:, :2], m[:, 2:].reshape(len(m), 2, 2)
    upper, lower = right[:, 0], right[:, 1]
    return [left[:, 0], left[:, 1:], upper, lower[:, :1], lower[:, 1]]


def parts(*cut: Part) -> Callable[[Tensor], list[Tensor]]:
    """Cut columns into these parts."""
    return lambda m: [p.of(m) for p in cut]


CUTS = {
    "slices of 2, 1 and 3": (parts(Part(0, 2), Part(2, 3), Part(3, 6)), 0),
    "in any order": (parts(Part(3, 6), Part(0, 2), Part(2, 3)), 0),
    "columns": (parts(*[column(i) for i in range(6)]), 0),
    "columns from the end": (parts(*[column(-i) for i in range(1, 7)]), 0),
    "slices and columns": (parts(column(0), Part(1, 3), column(3), Part(4, 6)), 0),
    "a gap at the end": (parts(Part(0, 2), Part(2, 5)), 1),
    "a gap at the start": (parts(Part(1, 3), column(3), Part(4, 6)), 1),
    "a gap in between": (parts(Part(0, 1), Part(1, 2), Part(4, 5), Part(5, 6)), 2),
    "an overlap": (parts(Part(0, 4), Part(2, 6)), 2),
    "two ways to cut": (parts(Part(0, 4), Part(4, 6), Part(0, 1), Part(1, 6)), 0),
    "one part twice": (parts(Part(0, 2), Part(2, 6), Part(0, 2)), 1),
    "nested": (nested, 0),
}
"""Ways to cut, and how many tensors padded with zeros remain."""


@pytest.mark.parametrize("name", CUTS)
def test_parts_are_joined_and_every_number_of_ranks_is_right(name: str) -> None:
    """Parts that tile the features leave no padding at all, others what is needed, and all are exact."""
    cut, remaining = CUTS[name]
    model, example = Cut(cut).eval(), random_graph(14, 1)
    after: dict[str, Normal] = {}
    program, _ = compiled_for(model, example, Settings(LocalWorld(1), after=after.__setitem__))
    assert padded(after["clean"].graph.graph) >= 2
    assert padded(program.program.graph.graph) == remaining
    with mock.patch.object(testing, "compile", return_value=program):
        check_model(model, example, [random_graph(20, 2), random_graph(5, 3, volume=1e6)], relative=1e-12)


WIDTH = 7


def gradient(cut: Sequence[Part], dim: int) -> tuple[fx.GraphModule, Tensor]:
    """The graph of the gradient of what is made of parts, and an input of it."""

    def run(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        used = [((i + 1.0) * p.of(x, dim)).sin() for i, p in enumerate(cut)]
        return torch.autograd.grad(used, x, [torch.ones_like(u) for u in used])[0]

    shape = [4, 3]
    shape.insert(dim, WIDTH)
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(cut)))
    module = make_fx(run, tracing_mode="fake")(x)
    module.graph.eliminate_dead_code()
    return module, x


def joined(module: fx.GraphModule) -> fx.GraphModule:
    """What the pass makes of a graph."""
    return join_parts(Normal(mock.Mock(), module)).graph


@st.composite
def part(draw: st.DrawFn) -> Part:
    """Any columns of `WIDTH`."""
    start = draw(st.integers(0, WIDTH - 1))
    is_column = draw(st.booleans())
    return Part(start, start + 1 if is_column else draw(st.integers(start + 1, WIDTH)), is_column)


@settings(max_examples=60)
@given(st.lists(part(), min_size=1, max_size=8), st.integers(0, 2))
def test_any_parts_give_the_same_sum(cut: list[Part], dim: int) -> None:
    """Disjoint or overlapping, with gaps, in any order and along any dimension; never more sums than before."""
    before, x = gradient(cut, dim)
    after = joined(before)
    torch.testing.assert_close(after(x), before(x), rtol=1e-13, atol=1e-13)
    one, two = counts(before.graph), counts(after.graph)
    assert two[aten.add.Tensor] <= one[aten.add.Tensor]
    touching = {p.end for p in cut} & {p.start for p in cut}
    assert bool(two[aten.cat.default]) == bool(touching), "what lies side by side is joined, nothing else"
    assert _shapes(after) == [tuple(x.shape)], "later passes read the shape that is noted"


def _shapes(module: fx.GraphModule) -> list[tuple[int, ...]]:
    (output,) = [n for n in module.graph.nodes if n.op == "output"]
    return [tuple(n.meta["val"].shape) for n in output.all_input_nodes]


@settings(max_examples=40)
@given(st.sets(st.integers(1, WIDTH - 1), min_size=1), st.integers(0, 2), st.randoms())
def test_parts_that_tile_the_whole_leave_no_sum(cuts: set[int], dim: int, random: Any) -> None:
    """Bit by bit the same: nothing is added to zero any more."""
    borders = [0, *sorted(cuts), WIDTH]
    tiles = [Part(a, b, b == a + 1 and random.random() < 0.5) for a, b in itertools.pairwise(borders)]
    random.shuffle(tiles)
    before, x = gradient(tiles, dim)
    after = joined(before)
    assert torch.equal(after(x), before(x))
    found = counts(after.graph)
    assert found[aten.add.Tensor] == 0
    assert found[aten.cat.default] == 1
    assert padded(after.graph) == 0


def chain(*ranges: tuple[int, int], width: int) -> tuple[fx.Graph, list[fx.Node], Tensor]:
    """A graph that adds padded parts one after the other, all its sums, and an input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    example = torch.rand(5, width, dtype=torch.float64)
    x.meta["val"] = example
    sums: list[fx.Node] = []
    for start, end in ranges:
        part = graph.call_function(aten.slice.Tensor, (x, 1, 0, end - start))
        part.meta["val"] = example[:, : end - start]
        term = graph.call_function(aten.slice_backward.default, (part, [5, width], 1, start, end, 1))
        sums.append(graph.call_function(aten.add.Tensor, (sums[-1], term)) if sums else term)
        term.meta["val"] = sums[-1].meta["val"] = example
    return graph, sums, example


def test_a_sum_that_is_used_elsewhere_stays_what_it_is() -> None:
    """The sum of two parts is a value of its own, and a part of the sum of all three."""
    graph, (_, two, three), example = chain((0, 2), (2, 4), (4, 6), width=6)
    graph.output([two, three])
    before = fx.GraphModule(torch.nn.Module(), graph)
    after = joined(before)
    for a, b in zip(after(example), before(example), strict=True):
        assert torch.equal(a, b)
    assert counts(after.graph)[aten.add.Tensor] == 0
    assert padded(after.graph) == 1, "the sum of two"


def test_longer_sums_than_python_nests_calls() -> None:
    """Two thousand parts, a column each, are one concatenation."""
    n = 2 * sys.getrecursionlimit()
    graph, sums, example = chain(*[(i, i + 1) for i in range(n)], width=n)
    graph.output(sums[-1])
    after = joined(fx.GraphModule(torch.nn.Module(), graph))
    assert counts(after.graph)[aten.add.Tensor] == 0
    assert counts(after.graph)[aten.cat.default] == 1
    assert torch.equal(after(example), example[:, :1].expand(-1, n))


def test_sums_of_other_shapes_are_left_alone() -> None:
    """A part that is broadcast is no summand of its sum's shape."""
    graph, (one,), example = chain((0, 2), width=4)
    other = graph.call_function(aten.slice_backward.default, (one.args[0], [5, 4], 1, 2, 4, 1))
    other.meta["val"] = example
    row = graph.call_function(aten.slice.Tensor, (other, 0, 0, 1))
    row.meta["val"] = example[:1]
    total = graph.call_function(aten.add.Tensor, (one, row))
    total.meta["val"] = example
    graph.output(total)
    before = fx.GraphModule(torch.nn.Module(), graph)
    assert torch.equal(joined(before)(example), before(example))
