"""Which operators pass a partial value on: a wrong one adds on every rank what should be added once."""

from __future__ import annotations

import pytest
from rewriting import names_in, program

from distcompile.rules.linear import is_linear

LINEAR = (
    "-x",
    "x.select(1, 0)",
    "sum(x, [0])",
    "x * y",
    "x @ torch.ones(3, 2, dtype=float)",
    "x / y",
    "x * 2",
    "x + x",
)
LINEAR += ("cat([x, x])", "where(mask[:, None], x, 0.0)", "stop_gradient(x)")
NOT_LINEAR = ("tanh(x)", "x * x", "x + y", "x + 1", "y / x", "x.to(torch.int64)", "cat([x, y])", "amax(x, [0])")
NOT_LINEAR += ("where(mask[:, None], x, 1.0)", "abs(x)", "x ** 2")


@pytest.mark.parametrize("expression", [*LINEAR, *NOT_LINEAR])
def test_linear_in_x(expression: str) -> None:
    """f(a) + f(b) is f(a + b), and nothing is added on every rank."""
    graph = program(expression, names_in(expression)).graph.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    x = list(graph.nodes)[names_in(expression).index("x")]
    assert is_linear(output.args[0][0], {x}) is (expression in LINEAR)
