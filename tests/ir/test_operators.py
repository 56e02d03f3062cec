"""The table of facts about operators, each fact held against what the operator does."""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from toys import random_graph

import distcompile
from distcompile import LocalWorld
from distcompile.ir import is_random
from distcompile.ir.operators import OPERATORS, Facts, Linear, facts, facts_of, filled_with, operators, row_numbers
from distcompile.ir.text import short_name
from distcompile.rules.linear import is_linear
from distcompile.runtime.operators.checks import distinct_rows
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
from distcompile.runtime.operators.whole import gather_rows, scatter_rows

aten = torch.ops.aten

ROWS = (3, 4)


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape or ROWS, dtype=torch.float64) + 0.25


def plane() -> Tensor:
    """A matrix that has an inverse."""
    return numbers(3, 3) + 3 * torch.eye(3, dtype=torch.float64)


def factored() -> tuple[Tensor, Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(plane())
    return factors, pivots


BY_TYPE: dict[str, Callable[[str], Any]] = {
    "Tensor": lambda name: numbers(),
    "List[Tensor]": lambda name: [numbers(), numbers()],
    "int": lambda name: {"dim": 1, "dim0": 0, "dim1": 1}.get(name, 2),
    "number": lambda name: 2,
    "float": lambda name: 0.5,
    "bool": lambda name: False,
    "List[int]": lambda name: {"dim": [1], "dims": [1, 0], "repeats": [2, 2], "shifts": [2]}.get(name, [4, 3]),
}
"""Operands that suit most operators, by the type and the name that the schema gives them."""

SAMPLES: dict[Any, Callable[[], tuple[Any, ...]]] = {
    # Lists of tensors stand for what operators with several results return.
    operator.getitem: lambda: ([numbers(), numbers()], 1),
    # Sizes must suit the operand's.
    aten.expand.default: lambda: (numbers(1, 4), [2, 3, 4]),
    aten.squeeze.dim: lambda: (numbers(3, 1, 4), 1),
    aten.squeeze.dims: lambda: (numbers(3, 1, 4, 1), [1, 3]),
    aten.squeeze.default: lambda: (numbers(3, 1, 4),),
    aten.slice.Tensor: lambda: (numbers(), 1, 1, 3),
    aten.split_with_sizes.default: lambda: (numbers(), [1, 3], 1),
    aten.t.default: lambda: (numbers(),),
    aten.sum.default: lambda: (numbers(),),
    aten.view_as_real.default: lambda: (torch.complex(numbers(), numbers()),),
    aten.select_backward.default: lambda: (numbers(3), [3, 4], 1, 2),
    aten.slice_backward.default: lambda: (numbers(3, 2), [3, 4], 1, 1, 3, 1),
    aten.diagonal_backward.default: lambda: (numbers(3), [3, 4], 0, 0, 1),
    aten.mm.default: lambda: (numbers(3, 4), numbers(4, 2)),
    aten.bmm.default: lambda: (numbers(2, 3, 4), numbers(2, 4, 2)),
    aten.addmm.default: lambda: (numbers(3, 2), numbers(3, 4), numbers(4, 2)),
    aten.baddbmm.default: lambda: (numbers(2, 3, 2), numbers(2, 3, 4), numbers(2, 4, 2)),
    aten.mv.default: lambda: (numbers(3, 4), numbers(4)),
    aten.dot.default: lambda: (numbers(4), numbers(4)),
    # Types and values, too.
    aten.fill.Tensor: lambda: (numbers(), torch.tensor(0.5, dtype=torch.float64)),
    aten.native_dropout.default: lambda: (numbers(), 0.5, True),
    aten.where.self: lambda: (numbers() > 0.75, numbers(), numbers()),
    aten.eq.Tensor: lambda: (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])),
    aten.ne.Tensor: lambda: (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])),
    aten.arange.start: lambda: (2, 7),
    aten.arange.start_step: lambda: (1, 9, 3),
    aten.linspace.default: lambda: (1.0, 3.0, 5),
    aten._linalg_solve_ex.default: lambda: (plane(), numbers(3, 4)),
    aten.linalg_lu_solve.default: lambda: (*factored(), numbers(3, 4)),
    aten.linalg_solve_triangular.default: lambda: (plane(), numbers(3, 4)),
    # Rows read or added to; that the index of the last scatter names one row twice is what its loop is to show.
    aten.index_select.default: lambda: (numbers(), 1, torch.tensor([3, 0, 3])),
    aten.embedding.default: lambda: (numbers(), torch.tensor([[2, 0, 2], [1, 1, 0]])),
    aten.gather.default: lambda: (numbers(), 1, torch.tensor([[3, 0], [1, 1], [0, 2]])),
    aten.index.Tensor: lambda: (numbers(4, 3, 2), [None, torch.tensor([2, 0, 2]), torch.tensor([1, 1, 0])]),
    aten.index_add.default: lambda: (numbers(), 1, torch.tensor([3, 0, 3]), numbers(3, 3)),
    aten.scatter_add.default: lambda: (numbers(), 1, torch.tensor([[3, 3], [1, 1], [0, 2]]), numbers(3, 2)),
    aten.scatter_reduce.two: lambda: (numbers(), 1, torch.tensor([[3, 3], [1, 1], [0, 2]]), numbers(3, 2), "amax"),
    aten.index_put.default: lambda: (
        *(numbers(4, 3, 2), [None, torch.tensor([2, 0, 2]), torch.tensor([1, 1, 1])]),
        *(numbers(4, 3), True),
    ),
    distinct_rows: lambda: (torch.tensor([3, 0, 2]),),
}
"""Operands of those that the schema does not tell."""

KEYWORDS: dict[Any, dict[str, Any]] = {
    aten._to_copy.default: {"dtype": torch.float32},
    aten.linalg_solve_triangular.default: {"upper": True},
}


def sample(target: Any) -> tuple[Any, ...]:
    """Operands of an operator."""
    if target in SAMPLES:
        return SAMPLES[target]()
    required = [a for a in target._schema.arguments if not a.has_default_value() and not a.kwarg_only]
    return tuple(BY_TYPE[_type(a)](a.name) for a in required)


def _type(argument: Any) -> str:
    name = str(argument.type)
    return name.removeprefix("Optional[")[:-1] if name.startswith("Optional[") else name


def call(target: Any, args: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return target(*args, **KEYWORDS.get(target, {}))


def results(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


def node_of(target: Any, *args: Any) -> fx.Node:
    return fx.Graph().call_function(target, args)


def every(having: Callable[[Facts], Any]) -> Any:
    """A parameter of all operators of which the table says something."""
    return pytest.mark.parametrize("target", operators(having), ids=short_name)


def replaced(args: tuple[Any, ...], values: dict[int, Any]) -> tuple[Any, ...]:
    return tuple(values.get(i, a) for i, a in enumerate(args))


# -- where elements of the result are from --------------------------------------------------------------------------


@every(lambda f: f.view)
def test_views_show_memory_of_their_first_operand(target: Any) -> None:
    """However it lies there, where a reshape copies."""
    operand, *rest = sample(target)
    columnwise = [_columnwise(x) for x in results(operand)]
    is_list = isinstance(operand, list)
    shown = columnwise[rest[0]] if is_list else columnwise[0]
    for result in results(call(target, (columnwise if is_list else shown, *rest))):
        assert result.untyped_storage().data_ptr() == shown.untyped_storage().data_ptr()


def _columnwise(x: Tensor) -> Tensor:
    """The same tensor with its first dimension innermost in memory."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


@every(lambda f: f.reshape)
def test_reshapes_keep_the_order_of_elements(target: Any) -> None:
    args = sample(target)
    assert call(target, args).shape == (4, 3)
    assert torch.equal(call(target, args).flatten(), args[0].flatten())


def _coded(value: Any, numbers: Iterator[int]) -> Any:
    """The same tensors, with a number of its own for each element."""
    if isinstance(value, list):
        return [_coded(v, numbers) for v in value]
    if isinstance(value, Tensor):
        return torch.tensor([next(numbers) for _ in range(value.numel())], dtype=torch.float64).reshape(value.shape)
    return value


def _codes(value: Any) -> set[float]:
    return {code for v in results(value) if isinstance(v, Tensor) for code in v.flatten().tolist()}


@every(lambda f: f.moves)
def test_what_moves_elements_computes_nothing_and_does_not_look_at_them(target: Any) -> None:
    """Other values in the same places come out at the same places."""
    args = tuple(_coded(a, codes) for codes in [itertools.count(1)] for a in sample(target))
    other = torch.randperm(99).double()
    found = call(target, args)
    given = [code for a in args if isinstance(a, Tensor | list) for code in _codes(a)]
    assert _codes(found) <= set(given)
    swapped = tuple(_mapped(a, other) for a in args)
    for one, two in zip(results(found), results(call(target, swapped)), strict=True):
        assert torch.equal(other[one.long()], two.double())


def _mapped(value: Any, table: Tensor) -> Any:
    if isinstance(value, list):
        return [_mapped(v, table) for v in value]
    return table[value.long()] if isinstance(value, Tensor) else value


@every(lambda f: f.shows_all)
def test_what_shows_all_leaves_nothing_out(target: Any) -> None:
    args = tuple(_coded(a, codes) for codes in [itertools.count(1)] for a in sample(target))
    assert _codes(call(target, args)) == _codes(args[0])


@every(lambda f: f.identity or f.same_values)
def test_what_keeps_values_returns_them(target: Any) -> None:
    given = torch.arange(12).double()
    found = call(target, (given,))
    assert found.tolist() == given.tolist()
    assert not facts_of(target).identity or found.dtype == given.dtype


# -- which elements the result depends on ---------------------------------------------------------------------------


def _tensors(args: tuple[Any, ...]) -> list[int]:
    return [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim()]


def _acts_in_place(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether changing an element of an operand changes that element of the results at most."""
    before = results(call(target, args))
    for position, place in itertools.product(_tensors(args), ((0, 1), (2, 3))):
        changed = args[position].clone()
        changed[place] = ~changed[place] if changed.dtype is torch.bool else changed[place] + 1
        after = results(call(target, replaced(args, {position: changed})))
        for one, two in zip(before, after, strict=True):
            same = (one == two) | (one.isnan() & two.isnan())
            same[place] = True
            if one.shape != ROWS or not bool(same.all()):
                return False
    return True


@every(lambda f: f.pointwise)
def test_pointwise_operators_act_at_one_place(target: Any) -> None:
    args = sample(target)
    if target in (aten.eq.Tensor, aten.ne.Tensor):
        args = (numbers(), numbers())
    if target is aten.empty_like.default:  # whose values are anybody's
        assert call(target, args).shape == ROWS
    else:
        assert _acts_in_place(target, args)


def _tagged() -> Iterator[Any]:
    """The operators that torch says are pointwise, without those that write into operands."""
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            target = getattr(packet, overload)
            plain = not target._schema.is_mutable and all(str(r.type) == "Tensor" for r in target._schema.returns)
            if torch.Tag.pointwise in target.tags and plain and target not in OPERATORS:
                yield target


def test_operators_that_torch_tags_as_pointwise_act_at_one_place() -> None:
    """The table has no rows for most of them; those that take none of our operands are left out."""
    wrong, seen = [], 0
    for target in _tagged():
        for cast in (torch.float64, torch.int64, torch.bool):
            try:
                args = tuple(a.to(cast) if isinstance(a, Tensor) else a for a in sample(target))
                acts = _acts_in_place(target, args)
            except (RuntimeError, NotImplementedError, KeyError, TypeError):
                continue
            seen += 1
            wrong += [] if acts else [str(target)]
            break
    assert wrong == []
    assert seen > 200


@every(lambda f: f.compares)
def test_comparisons_tell_the_last_bit(target: Any) -> None:
    x = numbers()
    assert not torch.equal(call(target, (x, x)), call(target, (x, torch.nextafter(x, x + 1))))


@every(lambda f: not f.data_dependent and f.crosses is None and f.puts_beside is None)
def test_what_is_not_random_gives_the_same_again(target: Any) -> None:
    """And what is random gives something else."""
    if target is aten.empty_like.default:
        return
    args = sample(target)
    one, two = (results(call(target, args, seed)) for seed in (0, 1))
    same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert same is not facts_of(target).random


# -- linear operators -------------------------------------------------------------------------------------------------


def _combined(one: Any, two: Any) -> Any:
    if isinstance(one, list | tuple):
        return [_combined(a, b) for a, b in zip(one, two, strict=True)]
    return 3 * one + two


def _is_linear_in(target: Any, args: tuple[Any, ...], positions: tuple[int, ...]) -> bool:
    """Whether f(3 a + b) = 3 f(a) + f(b) in the operands of these positions at once."""
    other = sample(target)
    parts = [replaced(args, {i: given[i] for i in positions}) for given in (args, other)]
    both = replaced(args, {i: _combined(args[i], other[i]) for i in positions})
    found, one, two = (results(call(target, a)) for a in (both, *parts))
    return all(torch.allclose(f, 3 * a + b, rtol=1e-6) for f, a, b in zip(found, one, two, strict=True))


@every(lambda f: f.linear)
def test_linear_operators_are(target: Any) -> None:
    row = facts_of(target).linear
    assert row is not None
    args = sample(target)
    for positions in [row.operands] if row.together else [(i,) for i in row.operands]:
        assert _is_linear_in(target, args, positions)


def test_a_product_is_not_linear_in_both_factors_at_once() -> None:
    """What the check above would say of a wrong row."""
    assert not _is_linear_in(aten.mul.Tensor, sample(aten.mul.Tensor), (0, 1))
    assert not _is_linear_in(aten.add.Tensor, sample(aten.add.Tensor), (0,))
    assert not _is_linear_in(aten.div.Tensor, sample(aten.div.Tensor), (1,))


def test_is_linear_looks_at_all_operands() -> None:
    """Whichever of them are parts of a sum."""
    graph = fx.Graph()
    x, y, n = (graph.placeholder(name) for name in "xyn")
    for target, args, partial, expected in (
        (aten.mul.Tensor, (x, y), {x}, True),
        (aten.mul.Tensor, (x, x), {x}, False),
        (aten.mul.Tensor, (x, 2.0), {x}, True),
        (aten.div.Tensor, (x, y), {x}, True),
        (aten.div.Tensor, (x, y), {y}, False),
        (aten.div.Tensor, (x, x), {x}, False),
        (aten.add.Tensor, (x, y), {x, y}, True),
        (aten.add.Tensor, (x, y), {x}, False),
        (aten.add.Tensor, (x, 1), {x}, False),
        (aten.add.Tensor, (x, n), {x}, False),
        (aten.cat.default, ([x, y], 1), {x, y}, True),
        (aten.cat.default, ([x, y], 1), {x}, False),
        (aten.where.self, (n, x, graph.call_function(aten.full.default, ([], 0))), {x}, True),
        (aten.where.self, (n, x, graph.call_function(aten.full.default, ([], 1))), {x}, False),
        (aten.where.self, (x, x, x), {x}, False),
        (aten.exp.default, (x,), {x}, False),
    ):
        assert is_linear(graph.call_function(target, args), partial) is expected, (target, args)


class Counted(nn.Module):
    """A sum over rows, plus how many rows there are."""

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        x, (i, j) = graph["positions"], graph["edge_index"]
        total = torch.zeros_like(x).index_add(0, i, x[i] - x[j])
        return (total * x).sum() + x.shape[0]


def test_a_number_of_the_graph_is_added_once_and_not_once_a_rank() -> None:
    graph = random_graph(20)
    compiled = distcompile.compile(Counted(), graph, world=LocalWorld(3))
    torch.testing.assert_close(compiled(graph), Counted()(graph))


def test_where_is_linear_beside_zeros() -> None:
    condition, x, _ = sample(aten.where.self)
    zeros = torch.zeros_like(x)
    assert facts_of(aten.where.self).linear == Linear((1, 2), together=True, or_zero=True)
    assert torch.equal(aten.where.self(condition, 2 * x, zeros), 2 * aten.where.self(condition, x, zeros))


def test_a_cast_to_integers_is_not_linear() -> None:
    assert facts_of(aten._to_copy.default).linear == Linear(in_reals=True)
    half = torch.tensor([0.5])
    assert aten._to_copy.default(half + half, dtype=torch.int64) != 2 * aten._to_copy.default(half, dtype=torch.int64)


# -- rows of tables ---------------------------------------------------------------------------------------------------


def _places(row: Any, args: tuple[Any, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Places in what is read or added, and where each of them is in the table."""
    table, index = args[row.table], args[row.index]
    dim = 0 if row.dim is None else args[row.dim]
    if row.several:
        given = [d for d, i in enumerate(index) if i is not None]
        lead, n = table.shape[: given[0]], len(given)
        for place in itertools.product(*map(range, (*lead, *index[given[0]].shape, *table.shape[given[-1] + 1 :]))):
            k = place[len(lead)]
            yield place, (*place[: len(lead)], *(int(index[d][k]) for d in given), *place[len(lead) + 1 :])
            assert given == list(range(given[0], given[0] + n))
    elif row.by_element:
        for place in itertools.product(*map(range, index.shape)):
            yield place, (*place[:dim], int(index[place]), *place[dim + 1 :])
    else:
        shape = (*table.shape[:dim], *index.shape, *table.shape[dim + 1 :])
        for place in itertools.product(*map(range, shape)):
            at = place[dim : dim + index.dim()]
            yield place, (*place[:dim], int(index[at]), *place[dim + index.dim() :])


@every(lambda f: f.rows is not None and f.rows.kind == "gather")
def test_gathers_read_rows_where_an_index_says(target: Any) -> None:
    row, args = facts_of(target).rows, sample(target)
    assert row is not None
    found = call(target, args)
    places = dict(_places(row, args))
    assert len(places) == found.numel()
    for place, there in places.items():
        assert found[place] == args[row.table][there]


@every(lambda f: f.rows is not None and f.rows.kind == "scatter")
def test_scatters_add_rows_where_an_index_says(target: Any) -> None:
    row, given = facts_of(target).rows, sample(target)
    assert row is not None and row.source is not None
    names = {"sum": operator.add, "amax": max, "amin": min}
    for how in names if row.reduction is not None else ["sum"]:
        args = given if row.reduction is None else replaced(given, {row.reduction: how})
        expected = args[row.table].clone()
        places = list(_places(row, args))
        assert len(places) == args[row.source].numel() > len({there for _, there in places})
        for place, there in places:
            expected[there] = names[how](float(expected[there]), float(args[row.source][place]))
        assert torch.allclose(call(target, args), expected)


# -- reductions, products and equations ------------------------------------------------------------------------------


@every(lambda f: f.reduces)
def test_reductions_make_one_element_of_many(target: Any) -> None:
    x = numbers()
    fold = {"sum": sum, "amax": max, "amin": min}[str(facts_of(target).reduces)]
    if len(target._schema.arguments) > 1 and target._schema.arguments[1].name == "dim":
        for keep in (False, True):
            found = call(target, (x, [1], keep))
            assert found.shape == ((3, 1) if keep else (3,))
            assert found.flatten().tolist() == pytest.approx([fold(row) for row in x.tolist()])
    else:
        assert float(call(target, (x,))) == pytest.approx(fold(x.flatten().tolist()))


@every(lambda f: f.product is not None)
def test_products_add_up_as_many_terms_as_the_table_says(target: Any) -> None:
    """All factors are one, and a bias is zero: each element is the number of terms."""
    args, first = sample(target), facts_of(target).product
    assert first is not None
    ones = tuple(torch.ones_like(a) if i >= first else torch.zeros_like(a) for i, a in enumerate(args))
    assert bool((call(target, ones) == args[first].shape[-1]).all())


@every(lambda f: f.right_hand_side is not None)
def test_columns_of_right_hand_sides_are_solved_for_by_themselves(target: Any) -> None:
    args, at = sample(target), facts_of(target).right_hand_side
    assert at is not None
    whole = results(call(target, args))[0]
    each = [results(call(target, replaced(args, {at: column})))[0] for column in args[at].split(1, dim=1)]
    assert torch.allclose(whole, torch.cat(each, 1))


# -- new tensors -----------------------------------------------------------------------------------------------------


@every(lambda f: f.fill is not None)
def test_what_fills_a_tensor_fills_it_with_that_value(target: Any) -> None:
    args = sample(target)
    found = call(target, args)
    assert found.numel() == 12
    assert bool((found == filled_with(node_of(target, *args))).all())


@every(lambda f: f.progression)
def test_progressions_are_at_even_distances(target: Any) -> None:
    args, row = sample(target), facts_of(target).progression
    assert row is not None
    found, counted = call(target, args).tolist(), row_numbers(node_of(target, *args))
    if row.step is None:
        assert counted is None
        assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1
    else:
        assert counted is not None
        assert found == [counted[0] + counted[1] * i for i in range(len(found))]


def test_row_numbers_go_up_by_one_if_no_step_is_given() -> None:
    assert row_numbers(node_of(aten.arange.start_step, 2, 5)) == (2, 1)


# -- messages ---------------------------------------------------------------------------------------------------------


def owned(rank: int) -> Tensor:
    """Two rows of a rank."""
    return torch.tensor([[1.0], [2.0]]) + 10 * rank


def halo(rank: int) -> Tensor:
    """What a rank adds to the first row of the other, the only one that it reads."""
    return torch.tensor([[100.0]]) * (rank + 1)


def room(rank: int) -> Tensor:
    """Owned rows, and room for a halo row."""
    return torch.cat([owned(rank), torch.zeros(1, 1)])


def both(rank: int) -> Tensor:
    """Owned rows, and the halo row."""
    return torch.cat([owned(rank), halo(rank)])


def summand(rank: int) -> Tensor:
    """Of all rows."""
    return torch.cat([owned(0), owned(1)]) * (rank + 1)


def plan(rank: int) -> tuple[Tensor, Tensor]:
    """The first row is sent to the other rank, and one is received."""
    crossing = [1, 0] if rank else [0, 1]
    return torch.tensor([0]), torch.tensor([crossing, crossing])


def order() -> tuple[Tensor, Tensor]:
    """All rows by rank, and how many each has."""
    return torch.arange(4), torch.tensor([2, 2])


CALLS: dict[Any, Callable[[int], tuple[Any, ...]]] = {
    halo_exchange: lambda rank: (owned(rank), *plan(rank), 1, 0),
    halo_gather: lambda rank: (owned(rank), *plan(rank), 1, 0),
    halo_reduce: lambda rank: (both(rank), *plan(rank), 1, 0),
    halo_scatter: lambda rank: (halo(rank), *plan(rank), owned(rank), 0),
    halo_join: lambda rank: (owned(rank), halo(rank), 1, 0),
    halo_join_: lambda rank: (room(rank), halo(rank), 1, 0),
    gather_rows: lambda rank: (owned(rank), *order(), 0),
    scatter_rows: lambda rank: (summand(rank), *order(), 0),
    all_reduce: lambda rank: (owned(rank),),
    all_reduces: lambda rank: ([owned(rank)], "sum"),
}
"""Operands on each of two ranks."""


def on_two_ranks(target: Any) -> list[tuple[tuple[Any, ...], Tensor]]:
    """Operands and result of each rank."""

    def work(communicator: Any) -> Any:
        args = CALLS[target](communicator.rank)
        return args, results(target(*args))[0]

    return LocalWorld(2).run(work)


def parameter(target: Any, position: int) -> str:
    """The name of an operand."""
    schema = getattr(target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema is not None else list(inspect.signature(target).parameters)
    return names[position]


@every(lambda f: f.crosses)
def test_messages_reach_whom_the_table_says(target: Any) -> None:
    message = facts_of(target).crosses
    assert message is not None
    assert message.to == "sum" if message.dim is None else parameter(target, message.dim) == "dim"
    for rank, (_, found) in enumerate(on_two_ranks(target)):
        expected = {
            "readers": owned(1 - rank)[:1],
            "owners": owned(rank) + torch.cat([halo(1 - rank), torch.zeros(1, 1)]),
            "all": torch.cat([owned(0), owned(1)]),
            "own": 3 * owned(rank),
            "sum": owned(0) + owned(1),
        }[message.to]
        assert torch.equal(found[-len(expected) :], expected)


@every(lambda f: f.puts_beside is not None)
def test_what_puts_halo_rows_beside_owned_rows(target: Any) -> None:
    at = facts_of(target).puts_beside
    assert at is not None
    assert [parameter(target, i) for i in (at, at + 1)] == ["halo_rows", "dim"]
    for rank, (_, found) in enumerate(on_two_ranks(target)):
        assert torch.equal(found[:2], owned(rank))
        assert found.shape == (3, 1)


@every(lambda f: f.in_place)
def test_what_works_in_place_shows_memory_of_its_first_operand(target: Any) -> None:
    for args, found in on_two_ranks(target):
        assert found.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()


# -- what has no row --------------------------------------------------------------------------------------------------


def test_nothing_is_said_of_an_unknown_operator() -> None:
    """It copies, computes, is linear in nothing, and needs all its operands whole."""
    row = facts_of(aten.cumsum.default)
    assert aten.cumsum.default not in OPERATORS
    assert row == Facts()
    assert not any((row.view, row.pointwise, row.linear, row.rows, row.moves, row.free, row.shares_memory))
    assert facts(fx.Graph().placeholder("x")) == Facts()


def test_torch_tells_of_operators_without_a_row() -> None:
    assert facts_of(aten.sin.default) == Facts(pointwise=True)
    assert facts_of(aten.nonzero.default) == Facts(data_dependent=True)
    assert facts_of(aten.rand.default) == Facts(random=True)
    assert is_random(node_of(aten.native_dropout.default))


def test_a_wrong_row_is_found() -> None:
    """What the checks above say of operators that are not what they ask for."""
    assert not _acts_in_place(aten.flip.default, sample(aten.flip.default))
    for check, target in (
        (test_views_show_memory_of_their_first_operand, aten.reshape.default),
        (test_reshapes_keep_the_order_of_elements, aten.expand.default),
        (test_what_moves_elements_computes_nothing_and_does_not_look_at_them, aten.neg.default),
        (test_what_shows_all_leaves_nothing_out, aten.select.int),
        (test_what_keeps_values_returns_them, aten.neg.default),
    ):
        with pytest.raises(AssertionError):
            check(target)


def test_an_operator_has_one_row() -> None:
    with pytest.raises(AssertionError, match=r"two rows for aten\.mul\.Tensor"):
        distcompile.ir.operators.register(aten.mul.Tensor, Facts())
