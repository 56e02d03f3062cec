"""Noise is dropped, equal operators are one, views have their sizes written down, sizes are those of inputs."""

from __future__ import annotations

import operator

import pytest
import torch
from rewriting import keeps, names_in, program, rewrites

from distcompile.passes.simplify.clean import clean

aten = torch.ops.aten

REWRITTEN = {
    "clone(detach(x))": "x",
    "cat([k + 0])": "k",
    "k * 1": "k",
    "s * 1": "s",
    "x.to(float)": "x",
    "permute(x, [0, 1])": "x",
    "expand(x, [n, 3])": "x",
    "slice(x, 0, 0, 2**63 - 1)": "x",
    "copy(zeros_like(x), x)": "x",
    "view(x, [n, 1, -1])": "reshape(x, [n, 1, 3])",
    "reshape(reshape(x, [n, 3, 1]), [n, 3])": "x",
    "squeeze(x[:, :, None])": "torch.ops.aten.squeeze.dims(unsqueeze(x, 2), [2])",
    "select(select_scatter(x, s, 1, 0), 1, 0)": "s",
    "select(select_scatter(x, s, 1, 0), 1, 2)": "select(x, 1, 2)",
}

KEPT = ("s + 0", "k * 1.5", "x.to(torch.float32)", "permute(x, [1, 0])", "cat([x, x])", "slice(x, 1, 0, 2)", "x + y")


@pytest.mark.parametrize("before", REWRITTEN)
def test_what_says_nothing_is_dropped(before: str) -> None:
    """And views ask for sizes, not for strides."""
    rewrites(clean, before, REWRITTEN[before])


@pytest.mark.parametrize("expression", KEPT)
def test_what_says_something_stays(expression: str) -> None:
    """A sum with zero makes -0 positive, and may be one of another dtype."""
    keeps(clean, expression)


def operators(expression: str) -> list[object]:
    """The operators of an expression once it is clean."""
    graph = clean(program(expression, names_in(expression))).graph.graph
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_equal_operators_are_one() -> None:
    """Of the same operands, with the same numbers of the same kind."""
    found = operators("tanh(x[p]) * tanh(x[p])")
    assert found == [aten.index.Tensor, aten.tanh.default, aten.mul.Tensor]
    assert operators("mul(x, 1.5) + mul(x, 2.5)").count(aten.mul.Tensor) == 2


def test_random_numbers_are_drawn_twice() -> None:
    """Two draws are not the same, though they look alike."""
    assert operators("rand_like(x) + rand_like(x)").count(aten.rand_like.default) == 2


def test_sizes_are_those_of_inputs() -> None:
    """What was computed for its size alone is not computed."""
    assert operators("zeros(cat([x, y]).shape[0])") == [
        aten.sym_size.int,
        aten.sym_size.int,
        operator.add,
        aten.full.default,
    ]
