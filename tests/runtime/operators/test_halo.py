"""The communication operators: adjoint to each other, right values, right gradients, right shapes without values.

A wrong adjoint gives wrong forces without an error, so it is held to rounding for every plan, reduction and dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from divisions import SOME, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from distcompile import LocalWorld, RankError, UnsupportedOp
from distcompile.runtime.division.plan import SpacePlan
from distcompile.runtime.operators.halo import (
    all_reduce,
    all_reduces,
    halo_exchange,
    halo_gather,
    halo_join,
    halo_join_,
    halo_reduce,
    halo_scatter,
)
from distcompile.runtime.operators.messages import start, wait
from distcompile.runtime.world import Communicator

WIDTH = 3
PARTS = (1, 2, 3, 4)


def in_place(kind: Any, table: Tensor, *plan: Any) -> Tensor:
    """A message that ends in the table that it begins with; `plan` are the further arguments of `start`."""
    return wait(start(kind, table, *plan, in_place=True), table)


def normal(shape: list[int], seed: int) -> Tensor:
    """Numbers that depend on `seed` only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_at(value: Tensor, dim: int) -> Tensor:
    """[rows, WIDTH] with its rows along `dim` of three dimensions: [1, rows, WIDTH] and so on."""
    return value[None].movedim(1, dim).contiguous()


def arguments(plan: SpacePlan, dim: int) -> tuple[Tensor, Tensor, int, int]:
    """What follows the rows in a call of `halo_exchange` or `halo_reduce`."""
    return plan.send_rows, plan.splits, len(plan.halo), dim


def on_ranks(parts: int, work: Callable[[Communicator], Any]) -> list[Any]:
    """The result of `work` on every rank."""
    return LocalWorld(parts).run(work)


def everywhere(case: Case, space: str) -> list[SpacePlan]:
    """The plan of one space on every rank."""
    division = case.divide()
    return [division.for_rank(r)[space] for r in range(case.parts)]


def gather_and_join(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> Tensor:
    """`halo_exchange` in two steps."""
    return halo_join(rows, halo_gather(rows, send_rows, splits, halo_rows, dim), halo_rows, dim)


def part_and_scatter(rows: Tensor, send_rows: Tensor, splits: Tensor, halo_rows: int, dim: int) -> Tensor:
    """`halo_reduce` in two steps."""
    owned = rows.shape[dim] - halo_rows
    mine, others = rows.narrow(dim, 0, owned), rows.narrow(dim, owned, halo_rows)
    return halo_scatter(others, send_rows, splits, mine, dim)


any_space = st.sampled_from(["atoms", "edges"])
any_dim = st.sampled_from([0, 1, 2])


@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=30)
def test_exchange_and_reduce_are_adjoint(parts: int, data: st.DataObject, space: str, dim: int) -> None:
    """<halo_exchange(x), y> = <x, halo_reduce(y)>, summed over ranks."""
    plans = everywhere(data.draw(cases(parts)), space)

    def work(comm: Communicator) -> tuple[Tensor, Tensor]:
        plan = plans[comm.rank]
        owned, halo = len(plan.owned), len(plan.halo)
        x = rows_at(normal([owned, WIDTH], comm.rank), dim)
        y = rows_at(normal([owned + halo, WIDTH], 100 + comm.rank), dim)
        exchanged = halo_exchange(x, *arguments(plan, dim))
        reduced = halo_reduce(y, *arguments(plan, dim))
        assert exchanged.shape == y.shape
        assert reduced.shape == x.shape
        return (exchanged * y).sum(), (x * reduced).sum()

    left, right = (sum(side) for side in zip(*on_ranks(parts, work), strict=True))
    assert abs(left - right) <= 1e-12 * max(1.0, abs(left))


@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=30)
def test_gather_and_scatter_are_adjoint(parts: int, data: st.DataObject, space: str, dim: int) -> None:
    """<halo_gather(x), y> = <x, halo_scatter(y, 0)>, summed over ranks; owned rows are added to."""
    plans = everywhere(data.draw(cases(parts)), space)

    def work(comm: Communicator) -> tuple[Tensor, Tensor]:
        plan = plans[comm.rank]
        x, y = (rows_at(normal([len(r), WIDTH], comm.rank), dim) for r in (plan.owned, plan.halo))
        fetched = halo_gather(x, *arguments(plan, dim))
        added = halo_scatter(y, plan.send_rows, plan.splits, torch.zeros_like(x), dim)
        more = halo_scatter(y, plan.send_rows, plan.splits, x, dim)
        assert fetched.shape == y.shape
        torch.testing.assert_close(more, added + x, rtol=0, atol=1e-12)
        return (fetched * y).sum(), (x * added).sum()

    left, right = (sum(side) for side in zip(*on_ranks(parts, work), strict=True))
    assert abs(left - right) <= 1e-12 * max(1.0, abs(left))


@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_dim)
@settings(max_examples=30)
def test_some_rows_cross(parts: int, data: st.DataObject, dim: int) -> None:
    """Rows that a pointer points at cross, forward and back, the others are zero; the operators stay adjoint."""
    case = data.draw(cases(parts))
    whole, some = everywhere(case, "edges"), everywhere(case, SOME.name)
    meant = set(case.values["second"].tolist())

    def work(comm: Communicator) -> tuple[Tensor, ...]:
        plan, part = whole[comm.rank], some[comm.rank]
        assert set(part.halo.tolist()) == set(plan.halo.tolist()) & meant
        owned, halo = len(plan.owned), len(plan.halo)
        places = torch.tensor([plan.halo.tolist().index(row) for row in part.halo.tolist()], dtype=torch.int64)
        given_arguments = part.send_rows, part.splits, halo, dim
        x = rows_at(normal([owned, WIDTH], comm.rank), dim)
        y = rows_at(normal([owned + halo, WIDTH], 100 + comm.rank), dim)
        theirs = y.narrow(dim, owned, halo)
        exchanged = halo_exchange(x, *given_arguments, places)
        kept = torch.isin(plan.halo, part.halo).to(torch.float64)
        expected = halo_gather(x, *arguments(plan, dim)) * rows_at(kept[:, None].expand(-1, WIDTH), dim)
        torch.testing.assert_close(exchanged.narrow(dim, owned, halo), expected, rtol=0, atol=0)
        fetched = halo_gather(x, *given_arguments, places)
        reduced = halo_reduce(y, *given_arguments, "sum", places)
        added = halo_scatter(theirs, part.send_rows, part.splits, torch.zeros_like(x), dim, places)
        torch.testing.assert_close(fetched, expected, rtol=0, atol=0)
        table = y.clone()
        torch.testing.assert_close(in_place("reduce", table, *given_arguments, "sum", places), reduced, rtol=0, atol=0)
        table.narrow(dim, 0, owned).copy_(x)
        torch.testing.assert_close(
            in_place("exchange", table, *given_arguments, "sum", places), exchanged, rtol=0, atol=0
        )
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((halo_exchange(leaf, *given_arguments, places) * y).sum(), leaf)
        torch.testing.assert_close(gradient, reduced, rtol=0, atol=1e-12)
        return (exchanged * y).sum(), (x * reduced).sum(), (fetched * theirs).sum(), (x * added).sum()

    sums = [sum(side) for side in zip(*on_ranks(parts, work), strict=True)]
    for left, right in (sums[:2], sums[2:]):
        assert abs(left - right) <= 1e-12 * max(1.0, abs(left))


@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=15)
def test_two_steps_are_one(parts: int, data: st.DataObject, space: str, dim: int) -> None:
    """What is fetched and joined is what is exchanged; what is parted and added is what is reduced."""
    plans = everywhere(data.draw(cases(parts)), space)

    def work(comm: Communicator) -> None:
        plan = plans[comm.rank]
        owned, halo = len(plan.owned), len(plan.halo)
        x = rows_at(normal([owned, WIDTH], comm.rank), dim)
        table = rows_at(normal([owned + halo, WIDTH], 100 + comm.rank), dim)
        exchanged = halo_exchange(x, *arguments(plan, dim))
        torch.testing.assert_close(gather_and_join(x, *arguments(plan, dim)), exchanged, rtol=0, atol=0)
        reduced = halo_reduce(table, *arguments(plan, dim))
        torch.testing.assert_close(part_and_scatter(table, *arguments(plan, dim)), reduced, rtol=0, atol=0)
        table.narrow(dim, 0, owned).copy_(x)
        assert halo_join_(table, exchanged.narrow(dim, owned, halo), halo, dim) is table
        torch.testing.assert_close(table, exchanged, rtol=0, atol=0)

    on_ranks(parts, work)


@pytest.mark.parametrize("parts", PARTS)
def test_all_reduce_is_its_own_adjoint(parts: int) -> None:
    def work(comm: Communicator) -> tuple[Tensor, Tensor]:
        x, y = normal([4, WIDTH], comm.rank), normal([4, WIDTH], 100 + comm.rank)
        return (all_reduce(x) * y).sum(), (x * all_reduce(y)).sum()

    left, right = (sum(side) for side in zip(*on_ranks(parts, work), strict=True))
    assert abs(left) > 0.1
    assert abs(left - right) <= 1e-12 * abs(left)


@pytest.mark.parametrize("reduction", ["sum", "amax", "amin"])
@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=15)
def test_a_reduction_is_that_of_the_whole(
    parts: int, reduction: str, data: st.DataObject, space: str, dim: int
) -> None:
    """Every owned row becomes the sum (largest, smallest) of what all ranks hold for it."""
    case = data.draw(cases(parts))
    plans = everywhere(case, space)
    given_rows = [normal([len(p.owned) + len(p.halo), WIDTH], r) for r, p in enumerate(plans)]
    held: dict[int, list[Tensor]] = {}
    for p, rows in zip(plans, given_rows, strict=True):
        for number, row in zip([*p.owned.tolist(), *p.halo.tolist()], rows, strict=True):
            held.setdefault(number, []).append(row)
    assert len(held) == case.sizes[space]

    def work(comm: Communicator) -> None:
        plan = plans[comm.rank]
        result = halo_reduce(rows_at(given_rows[comm.rank], dim), *arguments(plan, dim), reduction)
        expected = [getattr(torch.stack(held[number]), reduction)(0) for number in plan.owned.tolist()]
        whole = torch.stack(expected) if expected else torch.zeros(0, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(result, rows_at(whole, dim), rtol=0, atol=1e-12)

    on_ranks(parts, work)


@pytest.mark.parametrize("reduction", ["sum", "amax", "amin"])
@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=15)
def test_in_place_is_the_same(parts: int, reduction: str, data: st.DataObject, space: str, dim: int) -> None:
    """Owned rows stay where they are; the halo is written beside them, or left as it is."""
    plans = everywhere(data.draw(cases(parts)), space)

    def work(comm: Communicator) -> None:
        plan = plans[comm.rank]
        owned = len(plan.owned)
        table = rows_at(normal([owned + len(plan.halo), WIDTH], comm.rank), dim)
        mine = table.narrow(dim, 0, owned)
        reduced = halo_reduce(table, *arguments(plan, dim), reduction)
        exchanged = halo_exchange(reduced, *arguments(plan, dim))
        result = in_place("reduce", table, *arguments(plan, dim), reduction)
        torch.testing.assert_close(result, reduced, rtol=0, atol=0)
        assert result.data_ptr() == mine.data_ptr()
        filled = in_place("exchange", table, *arguments(plan, dim))
        assert filled is table
        torch.testing.assert_close(filled, exchanged, rtol=0, atol=0)

    on_ranks(parts, work)


@pytest.mark.parametrize("reduction", ["sum", "amax", "amin"])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_all_reduce_is_that_of_all_ranks(parts: int, reduction: str, dtype: torch.dtype) -> None:
    values = [(10 * normal([2, WIDTH], r)).to(dtype) for r in range(parts)]
    expected = getattr(torch.stack(values), reduction)(0)
    for result in on_ranks(parts, lambda comm: all_reduce(values[comm.rank], reduction)):
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_results_are_not_shared_between_ranks() -> None:
    """A rank that writes to its sum in place must not write to another's."""

    def work(comm: Communicator) -> Tensor:
        return all_reduce(torch.ones(2)).add_(comm.rank)

    assert [r.tolist() for r in on_ranks(3, work)] == [[3, 3], [4, 4], [5, 5]]


def global_sum(plans: list[SpacePlan], x: Tensor, weights: list[Tensor]) -> Tensor:
    """What the ranks of the gradient tests sum up together, on one tensor: x[owned + halo]^3 with weights."""
    parts = [(x[torch.cat([p.owned, p.halo])] ** 3 * w).sum() for p, w in zip(plans, weights, strict=True)]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("exchange", [halo_exchange, gather_and_join])
@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=15)
def test_exchange_differentiates_twice(
    parts: int, exchange: Callable[..., Tensor], data: st.DataObject, space: str, dim: int
) -> None:
    """Gradient and Hessian-vector product through an exchange are those of the whole."""
    case = data.draw(cases(parts))
    plans = everywhere(case, space)
    x = normal([case.sizes[space], WIDTH], 1).requires_grad_()
    v = normal([case.sizes[space], WIDTH], 2)
    weights = [normal([len(p.owned) + len(p.halo), WIDTH], 10 + r) for r, p in enumerate(plans)]
    (gradient,) = torch.autograd.grad(global_sum(plans, x, weights), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)

    def work(comm: Communicator) -> None:
        plan, w = plans[comm.rank], rows_at(weights[comm.rank], dim)
        mine = rows_at(x.detach()[plan.owned], dim).requires_grad_()
        energy = (exchange(mine, *arguments(plan, dim)) ** 3 * w).sum()
        (first,) = torch.autograd.grad(energy, mine, create_graph=True)
        (second,) = torch.autograd.grad((first * rows_at(v[plan.owned], dim)).sum(), mine)
        torch.testing.assert_close(first, rows_at(gradient[plan.owned], dim), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second, rows_at(product[plan.owned], dim), rtol=1e-12, atol=1e-12)

    on_ranks(parts, work)


@pytest.mark.parametrize("reduce", [halo_reduce, part_and_scatter])
@pytest.mark.parametrize("parts", PARTS)
@given(st.data(), any_space, any_dim)
@settings(max_examples=15)
def test_reduce_differentiates_twice(
    parts: int, reduce: Callable[..., Tensor], data: st.DataObject, space: str, dim: int
) -> None:
    """Gradient and Hessian-vector product through a reduction: here each rank's rows are variables of their own."""
    case = data.draw(cases(parts))
    plans = everywhere(case, space)
    rows = [torch.cat([p.owned, p.halo]) for p in plans]
    weights = normal([case.sizes[space], WIDTH], 3)
    held = [normal([len(r), WIDTH], 20 + i).requires_grad_() for i, r in enumerate(rows)]
    vectors = [normal([len(r), WIDTH], 40 + i) for i, r in enumerate(rows)]
    whole = torch.zeros_like(weights).index_add(0, torch.cat(rows), torch.cat(held))
    gradients = torch.autograd.grad((whole**3 * weights).sum(), held, create_graph=True)
    along = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
    products = torch.autograd.grad(along, held)

    def work(comm: Communicator) -> None:
        plan, w = plans[comm.rank], rows_at(weights[plans[comm.rank].owned], dim)
        mine = rows_at(held[comm.rank].detach(), dim).requires_grad_()
        energy = (reduce(mine, *arguments(plan, dim)) ** 3 * w).sum()
        (first,) = torch.autograd.grad(energy, mine, create_graph=True)
        (second,) = torch.autograd.grad((first * rows_at(vectors[comm.rank], dim)).sum(), mine)
        torch.testing.assert_close(first, rows_at(gradients[comm.rank], dim), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second, rows_at(products[comm.rank], dim), rtol=1e-12, atol=1e-12)

    on_ranks(parts, work)


@pytest.mark.parametrize("parts", PARTS)
def test_several_values_are_reduced_as_one(parts: int) -> None:
    """The same values as by one message each, and the same gradients, of those that are used."""

    def work(comm: Communicator) -> None:
        x = normal([4, WIDTH], comm.rank).requires_grad_()
        y = normal([2], 50 + comm.rank).requires_grad_()
        z = normal([], 70 + comm.rank).requires_grad_()
        several, single = all_reduces([x, y, z], "sum"), [all_reduce(v) for v in (x, y, z)]
        for one, other in zip(several, single, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        energies = [(e[0] ** 3).sum() * e[2] for e in (several, single)]
        first, second = (torch.autograd.grad(e, [x, z]) for e in energies)
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        extremes = all_reduces([x.detach(), y.detach()], "amax")
        torch.testing.assert_close(extremes[1], all_reduce(y.detach(), "amax"), rtol=0, atol=0)

    on_ranks(parts, work)


@pytest.mark.parametrize("parts", PARTS)
def test_all_reduce_differentiates_twice(parts: int) -> None:
    """The gradient counts what every rank does with the sum; it is not P times too large."""
    x = normal([parts, 4], 1).requires_grad_()
    v, weights = normal([parts, 4], 2), normal([parts, 4], 3)
    (gradient,) = torch.autograd.grad((x.sum(0) ** 3 * weights).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * v).sum(), x)

    def work(comm: Communicator) -> None:
        mine = x.detach()[comm.rank].requires_grad_()
        energy = (all_reduce(mine) ** 3 * weights[comm.rank]).sum()
        (first,) = torch.autograd.grad(energy, mine, create_graph=True)
        (second,) = torch.autograd.grad((first * v[comm.rank]).sum(), mine)
        torch.testing.assert_close(first, gradient[comm.rank], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second, product[comm.rank], rtol=1e-12, atol=1e-12)

    on_ranks(parts, work)


def two_ranks() -> list[SpacePlan]:
    """Four rows on two ranks; each rank reads the other's last row."""
    last, splits = torch.tensor([1]), ([[0, 1], [0, 1]], [[1, 0], [1, 0]])
    return [
        SpacePlan(torch.tensor([2 * r, 2 * r + 1]), torch.tensor([3 - 2 * r]), last, torch.tensor(splits[r]), 2)
        for r in range(2)
    ]


def test_the_backward_pass_may_run_in_another_thread() -> None:
    """As autograd's device threads do: the communicator is that of the forward pass."""
    plans = two_ranks()

    def work(comm: Communicator) -> Tensor:
        x = normal([2, WIDTH], comm.rank).requires_grad_()
        energy = halo_exchange(x, *arguments(plans[comm.rank], 0)).sum()
        thread = threading.Thread(target=energy.backward)
        thread.start()
        thread.join()
        assert x.grad is not None
        return x.grad

    for gradient in on_ranks(2, work):
        assert gradient.tolist() == [[1.0] * WIDTH, [2.0] * WIDTH]


@pytest.mark.parametrize("reduction", ["amax", "amin"])
def test_messages_of_extremes_have_no_gradient(reduction: str) -> None:
    """How many rows of each rank had the extreme they do not know (programs do); an error, not a wrong gradient."""
    plans = two_ranks()

    def of_all_reduce(comm: Communicator) -> None:
        all_reduce(torch.ones(2, requires_grad=True), reduction).sum().backward()

    def of_halo_reduce(comm: Communicator) -> None:
        x = torch.ones(3, requires_grad=True)
        halo_reduce(x, *arguments(plans[comm.rank], 0), reduction).sum().backward()

    for work in (of_all_reduce, of_halo_reduce):
        with pytest.raises(UnsupportedOp, match=f"by {reduction} has no gradient"):
            on_ranks(2, work)


def test_a_collective_outside_of_a_world_is_an_error() -> None:
    plan = two_ranks()[0]
    for call in (
        lambda: halo_exchange(torch.ones(2), *arguments(plan, 0)),
        lambda: halo_reduce(torch.ones(3), *arguments(plan, 0)),
        lambda: halo_gather(torch.ones(2), *arguments(plan, 0)),
        lambda: halo_scatter(torch.ones(1), plan.send_rows, plan.splits, torch.ones(2), 0),
        lambda: all_reduce(torch.ones(2)),
    ):
        with pytest.raises(RankError, match="outside of a world"):
            call()


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_shapes_without_values(dim: int, dtype: torch.dtype) -> None:
    """Tracing runs on fake tensors, in no world: shapes and dtypes are those of the real operators."""
    plan = two_ranks()[0]
    shape = [4, 5, 6]
    longer, shorter, halo = list(shape), list(shape), list(shape)
    longer[dim] += 2
    shorter[dim] -= 2
    halo[dim] = 2
    with FakeTensorMode() as mode:
        rows = mode.from_tensor(torch.zeros(shape, dtype=dtype))
        others = mode.from_tensor(torch.zeros(halo, dtype=dtype))
        send, splits = mode.from_tensor(plan.send_rows), mode.from_tensor(plan.splits)
        for result, expected in (
            (halo_exchange(rows, send, splits, 2, dim), longer),
            (halo_reduce(rows, send, splits, 2, dim), shorter),
            (halo_reduce(rows, send, splits, 2, dim, "amax"), shorter),
            (halo_gather(rows, send, splits, 2, dim), halo),
            (halo_scatter(others, send, splits, rows, dim), shape),
            (halo_join(rows, others, 2, dim), longer),
            (all_reduce(rows), shape),
            (all_reduce(rows, "amin"), shape),
        ):
            assert (list(result.shape), result.dtype) == (expected, dtype)


def test_symbolic_halo_rows_stay_symbolic() -> None:
    """The number of halo rows is an input of a traced program, not a constant of it."""
    plan = two_ranks()[0]

    def call(rows: Tensor, send: Tensor, splits: Tensor, halo: Tensor) -> Tensor:
        return halo_exchange(rows, send, splits, halo.shape[0], 0)

    given_tensors = (torch.zeros(7, WIDTH), plan.send_rows, plan.splits, torch.zeros(5))
    traced = make_fx(call, tracing_mode="symbolic")(*given_tensors)
    (node,) = [n for n in traced.graph.nodes if n.target is halo_exchange]
    rows, halo = (n for n in traced.graph.nodes if n.op == "placeholder" and n.name in ("rows_1", "halo_1"))
    expected = rows.meta["val"].shape[0].node.expr + halo.meta["val"].shape[0].node.expr
    assert node.meta["val"].shape[0].node.expr == expected
    assert isinstance(node.args[3], torch.fx.Node)


@pytest.mark.parametrize("dim", [0, 1])
def test_operators_are_registered_soundly(dim: int) -> None:
    """PyTorch's own checks: schema, no aliasing, fakes that agree, autograd, tracing with dynamic shapes.

    A single rank that reads its own rows exchanges and reduces something.
    """
    send_rows, splits = torch.tensor([1, 0]), torch.tensor([[2], [2]])
    rows = normal([3, 4], 0).requires_grad_()

    def work(comm: Communicator) -> None:
        for operator, given_arguments in (
            (halo_exchange, (rows, send_rows, splits, 2, dim)),
            (halo_reduce, (rows, send_rows[:1], splits // 2, 1, dim)),
            (halo_reduce, (rows.detach(), send_rows[:1], splits // 2, 1, dim, "amax")),
            (halo_gather, (rows, send_rows, splits, 2, dim)),
            (halo_scatter, (rows.detach().narrow(dim, 0, 2).clone().requires_grad_(), send_rows, splits, rows, dim)),
            (halo_join, (rows, rows.detach().narrow(dim, 0, 2).clone().requires_grad_(), 2, dim)),
            (all_reduce, (rows,)),
            (all_reduce, (rows.detach(), "amin")),
            (all_reduces, ([rows, rows.detach()[0].clone().requires_grad_()], "sum")),
            (all_reduces, ([rows.detach(), rows.detach()[0].clone()], "amax")),
        ):
            found = torch.library.opcheck(operator, given_arguments)
            assert set(found.values()) == {"SUCCESS"}
            assert len(found) == 4

    on_ranks(1, work)
