"""Operators that change tensors in place become ones that return new tensors: the same numbers."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import distcompile
from distcompile import LocalWorld
from distcompile.capture import trace as capture
from distcompile.capture.mutations import NoRule, without_mutations
from distcompile.ir.graphs import writes

aten = torch.ops.aten

VIEWS: list[Callable[[Tensor, int], Tensor]] = [
    lambda x, i: x[i % x.shape[0] :] if x.dim() else x[None],
    lambda x, i: x[..., ::2] if x.dim() else x[None],
    lambda x, i: x.select(-1, i % x.shape[-1]) if x.dim() else x[None],
    lambda x, i: x.unsqueeze(i % (x.dim() + 1)),
    lambda x, i: x.transpose(0, -1) if x.dim() else x[None],
    lambda x, i: x.permute(*range(x.dim())[::-1]),
    lambda x, i: x.view(x.shape),
    lambda x, i: x.detach(),
    lambda x, i: x.view(1, *x.shape),
]
CHANGES: list[Callable[[Tensor, int], Any]] = [
    lambda x, i: x.add_(i),
    lambda x, i: x.mul_(x.sum().double() + i),
    lambda x, i: x.copy_(torch.full((), float(i))),
    lambda x, i: x.zero_(),
    lambda x, i: x.masked_fill_(x > 1, i),
    lambda x, i: x.index_add_(0, torch.zeros(1, dtype=torch.int64), x[-1:] * 2) if x.dim() else x.neg_(),
    lambda x, i: x.fill_(i),
]
USES: list[Callable[[Tensor, int], Tensor]] = [lambda x, i: x.sin() + i, lambda x, i: x * 2, lambda x, i: x.clone()]
STEPS = VIEWS + CHANGES + USES
PROGRAMS = st.lists(st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 3)), max_size=14)
"""What to do, with which of the tensors made so far, and a number."""


def traced(call: Callable[..., Any], *args: Tensor) -> tuple[fx.GraphModule, FakeTensorMode]:
    """The call as a graph, whose first dimensions are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x) for x in args]
    with mode:
        return make_fx(call, _allow_non_fake_inputs=True)(*fakes), mode


def rewritten(call: Callable[..., Any], *args: Tensor) -> fx.GraphModule:
    """The call without mutations."""
    module = without_mutations(*traced(call, *args))
    assert not any(writes(n.target) for n in module.graph.nodes)
    return module


@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.given(PROGRAMS)
def test_any_order_of_views_changes_and_uses(steps: list[tuple[int, int, int]]) -> None:
    """Views of views, changed through any of them and read through any other."""

    def call(x: Tensor) -> list[Tensor]:
        pool = [x * 1.5]
        for step, which, number in steps:
            result = STEPS[step](pool[which % len(pool)], number)
            pool.append(result)
        return pool

    x = torch.arange(1.0, 13).view(4, 3) / 7
    expected = call(x.clone())
    for found, right in zip(rewritten(call, x)(x.clone()), expected, strict=True):
        assert found.dtype == right.dtype
        assert torch.equal(found.nan_to_num(), right.nan_to_num())


def test_parts_of_a_split_see_a_change() -> None:
    """Parts are read again after the whole was changed."""

    def call(x: Tensor) -> Tensor:
        whole = x + 1
        one, two = whole.split(2)
        whole.mul_(3)
        return one * two

    x = torch.arange(4.0)
    assert torch.equal(rewritten(call, x)(x), call(x))


def test_the_changed_tensor_keeps_its_dtype() -> None:
    """Adding double-precision values in place leaves single precision."""

    def call(x: Tensor) -> Tensor:
        return (x * 1).add_(torch.ones(4, dtype=torch.float64))

    x = torch.arange(4.0)
    (found,) = [rewritten(call, x)(x)]
    assert found.dtype == torch.float32
    assert torch.equal(found, call(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.add_(1),
        lambda x: (x + 1).split(2)[0].add_(1),
        lambda x: (x + 1).expand(2, 4)[0].add_(1),
        lambda x: aten.sin.out(x, out=torch.empty_like(x)),
        lambda x: (x + 1).add_(1).as_strided((2, 2), (1, 1)),
    ],
    ids=["input", "part of a split", "expanded", "out", "by layout"],
)
def test_what_has_no_rule_is_said(call: Callable[[Tensor], Tensor]) -> None:
    """An input, views that cannot be put back, results of other kinds, views of memory rather than of values."""
    with pytest.raises(NoRule):
        without_mutations(*traced(call, torch.arange(4.0)))


class Springs(torch.nn.Module):
    """Energies of edges, changed through parts of a split."""

    def forward(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        positions = graph["positions"].requires_grad_(True)
        sender, receiver = graph["edge_index"]
        with torch.no_grad():
            weights = positions[sender] * 0.5
            weights.split(2, dim=1)[0].add_(1)
        energy = ((positions[sender] - positions[receiver]) * weights).square().sum()
        return {"energy": energy, "forces": -torch.autograd.grad(energy, positions)[0]}


def test_without_a_rule_torch_follows_the_call_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers by the longer way."""
    followed = []
    again = capture._followed_again
    monkeypatch.setattr(capture, "_followed_again", lambda trace: followed.append(trace) or again(trace))
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(12, 3, dtype=torch.float64, generator=generator)
    edges = torch.randint(0, 12, (2, 40), generator=generator)
    model = distcompile.compile(
        Springs(), {"positions": positions, "edge_index": edges}, world=LocalWorld(2), validate=False
    )
    expected = Springs()({"positions": positions.clone(), "edge_index": edges})
    found = model({"positions": positions, "edge_index": edges})
    assert len(followed) == 1
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-12, atol=1e-12)
