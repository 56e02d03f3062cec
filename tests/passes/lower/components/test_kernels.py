"""Regions with kernels are regions that run operator by operator, whatever rows, threads and blocks they are given."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import toys
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld
from distcompile.passes.lower import lower
from distcompile.runtime.execution import kernels
from distcompile.runtime.execution.kernels import Kernel
from distcompile.runtime.execution.tiles import Add, Reduce, Region, Store

from .bodies import Inputs, Rows, Table, Weight, regions

pytestmark = pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")

ADD = Add(dim=0, reduction="sum", by_element=False, reuse=False)
STORE = Store(dim=0, factor=1)
SUM = Reduce("sum")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


ORDERS = ("unsorted", "sorted", "one", "last")
"""Receivers: at random, in order, one that has all rows, and one that has nearly all."""


def receivers(order: str, rows: int, atoms: int = 10) -> Tensor:
    """The receiver of each row."""
    random = torch.randint(0, atoms, (rows,), generator=torch.Generator().manual_seed(rows))
    alone = torch.full((rows,), 3)
    return {"unsorted": random, "sorted": random.sort()[0], "one": alone, "last": torch.where(random < 1, 2, 9)}[order]


def inputs(rows: int, order: str = "unsorted") -> Inputs:
    """Edges with a sender, a receiver and features; tables of atoms."""
    random = torch.Generator().manual_seed(rows + 1)
    fixed = torch.Generator().manual_seed(0)

    def normal(*shape: int, generator: torch.Generator = random) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": Rows(normal(rows, 20)),
        "receiver": Rows(receivers(order, rows)),
        "sender": Rows(torch.randint(0, 10, (rows,), generator=random)),
        "ends": Rows(torch.randint(0, 10, (rows, 2), generator=random)),
        "h": Table(normal(10, 20, generator=fixed)),
        "w": Weight(normal(20, 20, generator=fixed)),
    }


def tensors(given: Inputs) -> list[Tensor]:
    """The inputs of a region."""
    return [g.tensor for g in given.values()]


def table(width: int = 20, dtype: torch.dtype = torch.float64) -> Tensor:
    """A table to add to, which is not empty."""
    return (torch.arange(10 * width).reshape(10, width) / 7).to(dtype)


def message(t: Any) -> list[Tensor]:
    """A message to each receiver, the features of each edge, and an energy."""
    m = (t.x @ t.w).tanh() * t.h[t.sender]
    return [t.receiver, m, m.exp(), (m * t.x).sum((0, 1))]


@functools.cache
def messages() -> tuple[Region, Region]:
    """Regions of messages."""
    return regions(message, inputs(11), (ADD, STORE, SUM))


def check(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Results are the same to 1e-12."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_results_do_not_depend_on_threads_and_rows(threads: int) -> None:
    """One compiled body for all numbers of rows: fewer than there are lanes, as many, many, and some left over."""
    plain, region = messages()
    assert isinstance(region.compiled, Kernel)
    assert [v.kind for v in region.compiled.values] == ["add", "store", "sum"]
    for rows, order in itertools.product((1, 7, 8, 37, 200, 1003), ORDERS):
        given = tensors(inputs(rows, order))
        before = table()
        check(region(rows, *given, before), plain(rows, *given, table()))
        assert torch.equal(before, table()), "the table was not to be changed"


def test_stretches_end_where_the_receiver_changes(threads: int) -> None:
    """No two threads add to one row; all rows are taken once."""
    _, region = messages()
    kernel = region.compiled
    assert isinstance(kernel, Kernel)
    for order in ORDERS:
        given = inputs(1003, order)
        laid_out = kernel.laid_out(tensors(given))
        for first, end in ((0, 1003), (0, 500), (500, 1003), (400, 401)):
            positions, stretches = kernel.stretches(laid_out, first, end, threads, [False] * 3)
            assert [a for a, _ in stretches] == [first, *(b for _, b in stretches[:-1])]
            assert stretches[-1][1] == end
            rows = torch.arange(1003) if positions is None else positions
            assert sorted(rows[first:end].tolist()) == list(range(first, end))
            if threads > 1:
                target = given["receiver"].tensor[rows]
                assert all(target[b - 1] != target[b] for _, b in stretches[:-1])
                assert len(stretches) > 1 or order in ("one", "last") or end - first == 1


@pytest.mark.parametrize("bytes_of_values", [1, 1000, 2**22])
def test_results_do_not_depend_on_the_size_of_blocks(bytes_of_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that others add up are handed over in blocks: of as few rows as there are lanes, or all at once."""
    monkeypatch.setattr(kernels, "VALUES_BYTES", bytes_of_values)
    results = (Add(0, "amax", by_element=True, reuse=False), STORE, SUM)

    def run(t: Any) -> list[Tensor]:
        m = t.x.sin() * t.h[t.sender]
        return [t.receiver[:, None].expand(t.n, 20), m, m + 1, m.sum((0, 1))]

    plain, region = regions(run, inputs(11), results)
    assert [v.kind for v in region.compiled.values] == ["values", "values", "store", "sum"]
    given = tensors(inputs(333))
    check(region(333, *given, table()), plain(333, *given, table()))


def test_some_rows_first_and_the_others_later(threads: int) -> None:
    """The results of one call are completed by another."""
    plain, region = messages()
    for order, cut in itertools.product(ORDERS, (1, 16, 50, 100)):
        given = tensors(inputs(101, order))
        expected = plain(101, *given, table())
        found = region(101, *given, table(), only=(0, cut))
        assert not torch.allclose(found[0], expected[0])
        check(region(101, *given, table(), only=(cut, 101), so_far=found), expected)
        found = region(101, *given, table(), only=(cut, 101))
        check(region(101, *given, table(), only=(0, cut), so_far=found), expected)


def test_no_rows_first(threads: int) -> None:
    """All rows wait for a message."""
    plain, region = messages()
    given = tensors(inputs(33))
    found = region(33, *given, table(), only=(0, 0))
    check(region(33, *given, table(), only=(0, 33), so_far=found), plain(33, *given, table()))


def test_a_region_without_rows(threads: int) -> None:
    """Results have their shapes; the table is as it was."""
    plain, region = messages()
    given = tensors(inputs(0))
    found = region(0, *given, table())
    assert found[1].shape == (0, 20)
    assert torch.equal(found[0], table())
    assert found[2] == 0
    check(found, plain(0, *given, table()))


def test_two_sums_into_one_table(threads: int) -> None:
    """At both ends of each edge; the second sum continues the first."""
    results = (ADD, Add(0, "sum", by_element=False, reuse=True, after=0))

    def run(t: Any) -> list[Tensor]:
        m = t.x * t.h[t.sender]
        return [t.receiver, m, t.sender, -m]

    plain, region = regions(run, inputs(11), results)
    across = table().T.contiguous().T
    for order in ORDERS:
        given = tensors(inputs(111, order))
        expected = plain(111, *given, table())
        check(region(111, *given, table()), expected)
        check(region(111, *given, across), expected)


def test_two_tables_by_one_pointer_and_one_by_another(threads: int) -> None:
    """Both tables of the receivers are added to within the loop; that of the senders is not."""
    results = (ADD, ADD, ADD)

    def run(t: Any) -> list[Tensor]:
        return [t.receiver, t.x * 2, t.sender, t.x[:, :3], t.receiver, t.x[:, :5].exp()]

    plain, region = regions(run, inputs(11), results)
    kernel = region.compiled
    assert isinstance(kernel, Kernel)
    assert [kernel.adds_at_once(v, 2) for v in kernel.values] == [True, False, True]
    assert all(kernel.adds_at_once(v, 1) for v in kernel.values)
    given = [*tensors(inputs(111)), table(), table(3), table(5)]
    check(region(111, *given), plain(111, *given))


def test_one_of_several_pointers_of_a_row(threads: int) -> None:
    """The receiver is the second entry of each row."""

    def run(t: Any) -> list[Tensor]:
        return [t.ends[:, 1], t.x]

    plain, region = regions(run, inputs(11), (ADD,))
    assert region.compiled.order == (3, 1)
    given = tensors(inputs(77))
    check(region(77, *given, table()), plain(77, *given, table()))


def test_rows_numbered_by_int32(threads: int) -> None:
    """One or several for each row."""

    def run(t: Any) -> list[Tensor]:
        ends = t.ends.to(torch.int32)
        return [ends[:, 0], t.x, ends.reshape(-1), torch.stack([t.x, -2 * t.x], 1).reshape(-1, 20)]

    plain, region = regions(run, inputs(11), (ADD, ADD))
    given = [*tensors(inputs(77)), table(), table()]
    check(region(77, *given), plain(77, *given))


def test_several_rows_for_each(threads: int) -> None:
    """Both ends of an edge, as one index of two entries a row."""

    def run(t: Any) -> list[Tensor]:
        return [t.ends.reshape(-1), torch.stack([t.x, -2 * t.x], 1).reshape(-1, 20)]

    plain, region = regions(run, inputs(11), (ADD,))
    given = tensors(inputs(77))
    check(region(77, *given, table()), plain(77, *given, table()))


def test_a_pointer_that_is_computed(threads: int) -> None:
    """Threads cannot tell beforehand where rows go."""

    def run(t: Any) -> list[Tensor]:
        return [(t.receiver + t.sender).clamp(max=9), t.x * 2]

    plain, region = regions(run, inputs(11), (ADD,))
    assert region.compiled.order is None
    given = tensors(inputs(77))
    check(region(77, *given, table()), plain(77, *given, table()))


def test_a_pointer_that_is_a_number(threads: int) -> None:
    """All rows belong to row 0 of a table, which no input says."""

    def run(t: Any) -> list[Tensor]:
        return [torch.zeros(t.n, dtype=torch.int64), t.x]

    plain, region = regions(run, inputs(11), (ADD,))
    assert region.compiled.order is None
    given = tensors(inputs(77))
    check(region(77, *given, table()), plain(77, *given, table()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32])
def test_tables_of_other_dtypes(dtype: torch.dtype, threads: int) -> None:
    """Integers are counted exactly, those of 32 bits too, in tables wider than there are lanes."""

    def run(t: Any) -> list[Tensor]:
        return [t.receiver, (t.x * 4).to(dtype)]

    plain, region = regions(run, inputs(11), (ADD,))
    for order in ORDERS:
        given = tensors(inputs(77, order))
        (found,), (expected,) = (r(77, *given, table(dtype=dtype)) for r in (region, plain))
        within = 1e-5 if dtype.is_floating_point else 0.0
        torch.testing.assert_close(found, expected, rtol=within, atol=within)


def test_room_for_halo_rows(threads: int) -> None:
    """Rows are stored at the start of memory that has room for more."""
    plain, region = regions(lambda t: [t.x * 2, t.x.sum(1)], inputs(11), (Store(0, 1, room=True), STORE))
    given = tensors(inputs(45))
    found, expected = region(45, *given, 13), plain(45, *given, 13)
    assert found[0].shape == expected[0].shape == (58, 20)
    check([found[0][:45], found[1]], [expected[0][:45], expected[1]])


def test_a_table_that_is_changed_in_place(threads: int) -> None:
    """One that nothing else needs is added to where it is."""
    plain, region = regions(lambda t: [t.receiver, t.x], inputs(11), (Add(0, "sum", by_element=False, reuse=True),))
    given, own, apart = tensors(inputs(45)), table(), table().T.contiguous().T
    (found,) = region(45, *given, own)
    assert found.data_ptr() == own.data_ptr()
    (expected,) = plain(45, *given, table())
    check([found, *region(45, *given, apart)], [expected, expected])


def test_inputs_of_other_layouts(threads: int) -> None:
    """Transposed, sliced and expanded inputs are read in row order."""
    plain, region = messages()
    x, receiver, sender, ends, h, w = tensors(inputs(45))
    given = [x.T.contiguous().T, receiver.repeat_interleave(2)[::2], sender[:1].expand(45), ends, h.flip(0), w.T]
    check(region(45, *given, table()), plain(45, *given, table()))


@pytest.mark.parametrize("which", [0, 1, 4])
def test_an_input_of_another_dtype_runs_by_operators(which: int) -> None:
    """The kernel was compiled for others: it does not read float32 as float64."""
    plain, region = regions(lambda t: [t.receiver, t.x * 2, t.h[t.sender].sum(1)], inputs(11), (ADD, STORE))
    given = tensors(inputs(45))
    given[which] = given[which].to(torch.int32 if which == 1 else torch.float32)
    kernel = region.compiled
    assert isinstance(kernel, Kernel)
    assert not kernel.takes(given)
    own = table(dtype=torch.float32 if which == 0 else torch.float64)
    found, expected = region(45, *given, own), plain(45, *given, own)
    assert [f.dtype for f in found] == [e.dtype for e in expected]
    check(found, expected)


class Charged(toys.Potential):
    """Charges of species are a buffer, whose values become part of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("charges", torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64))
        self.register_buffer("powers", torch.tensor([1.0, 0.0, 3.0, 0.5], dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def energy(self, graph: toys.Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        sender, receiver = graph["edge_index"]
        charges = self.charges[graph["species"]]
        basis = (toys.gaussians(lengths, 4) * self.powers).sum(-1)
        pairs = charges[sender] * charges[receiver] * basis * self.scale
        energies = torch.zeros_like(charges).index_add(0, receiver, pairs)
        return energies.sum(), energies


@pytest.mark.parametrize("ranks", [1, 2])
def test_buffers_that_change_are_compiled_again(ranks: int) -> None:
    """Zeros among their values were left out of the code; then they are others."""
    model = Charged().eval()
    graph = toys.random_graph(16, 1)
    compiled = distcompile.compile(model, graph, world=LocalWorld(ranks), lowering="kernels", validate=False)
    values = []
    for powers in ([1.0, 0.0, 3.0, 0.5], [0.0, 2.0, 0.0, -1.0], [1.0, 0.0, 3.0, 0.5]):
        with torch.no_grad():
            model.powers.copy_(torch.tensor(powers, dtype=torch.float64))
        found, expected = compiled(graph), model(graph)
        values.append(float(expected["energy"]))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
    assert abs(values[0] - values[1]) > 1e-3 and values[0] == values[2]
    tiled = compiled.program.tiled
    assert tiled is not None and any(isinstance(r.compiled, Kernel) for r in tiled.children() if isinstance(r, Region))
