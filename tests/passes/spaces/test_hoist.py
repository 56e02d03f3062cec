"""Integers, and what decides about them, are computed once on the whole graph; the rest is what ranks run."""

from __future__ import annotations

import torch
from printed import programs
from torch import Tensor, fx

from distcompile.ir.text import short


def kinds(x: Tensor, p: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Messages of the atoms of a kind."""
    return torch.zeros_like(x).index_add(0, q, x[p] * (k[p] == 1).double()[:, None])


def chosen(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Edges that are short enough, which features decide."""
    mask = (x[p] - x[q]).square().sum(1) < 0.5
    i, j = p[mask], q[mask]
    return torch.zeros_like(x).index_add(0, j, x[i])


def operators(graph: fx.Graph) -> list[str]:
    return [short(node) for node in graph.nodes if node.op == "call_function" and "sym_size" not in str(node.target)]


def test_integers_are_hoisted() -> None:
    """One value for each edge is stored, its view and its cast are not."""
    program = programs(kinds)["hoist"]
    assert operators(program.index_program.graph) == ["index.Tensor", "eq.Scalar"]
    assert {"eq.Scalar", "nonzero"}.isdisjoint(operators(program.graph.graph))
    assert "_to_copy" in operators(program.graph.graph)


def test_what_decides_about_integers_is_hoisted() -> None:
    """A cut at a distance makes pointers."""
    program = programs(chosen)["hoist"]
    assert {"lt.Scalar", "nonzero"} <= set(operators(program.index_program.graph))
    assert {"lt.Scalar", "nonzero"}.isdisjoint(operators(program.graph.graph))


def test_every_placeholder_is_an_input() -> None:
    """By its name."""
    program = programs(kinds)["hoist"]
    names = [n.name for n in program.graph.graph.nodes if n.op == "placeholder"]
    assert {i.name for i in program.inputs} >= set(names)
    assert [o.source for o in program.outputs] == ["graph"]
