"""Virtual ranks: the same order every time, one failure ends all, and a rank that strays is an error, not a hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from toys import Gnn, random_graph

import distcompile
from distcompile import LocalWorld, ProcessGroupWorld, RankError
from distcompile.runtime.world import Communicator, communicator, default_world

T = TypeVar("T")
SIZES = (1, 2, 3, 4)


def within(seconds: float, function: Callable[[], T]) -> T:
    """The result (or exception) of a call that must not hang."""
    found: list[T] = []
    raised: list[BaseException] = []

    def main() -> None:
        try:
            found.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"hangs for more than {seconds} s"
    if raised:
        raise raised[0]
    return found[0]


def run(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """`work` on every virtual rank, in at most 20 s."""
    return within(20, lambda: LocalWorld(size).run(work))


@pytest.mark.parametrize("size", SIZES)
def test_results_come_by_rank(size: int) -> None:
    assert run(size, lambda comm: (comm.rank, comm.size)) == [(r, size) for r in range(size)]


def test_ranks_take_turns_from_collective_to_collective() -> None:
    """Between two collectives, ranks run one after the other, in order: what they log is the same every time."""

    def log() -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = []

        def work(comm: Communicator) -> None:
            for step in range(4):
                events.append((step, comm.rank))
                comm.all_reduce(torch.ones(1))

        run(3, work)
        return events

    expected = [(step, rank) for step in range(4) for rank in range(3)]
    assert all(log() == expected for _ in range(5))


def test_an_evaluation_is_reproducible_to_the_bit() -> None:
    model, graph = Gnn(), random_graph(20, 1)
    compiled = distcompile.compile(model, graph, world=LocalWorld(3))
    first = compiled(graph)
    for _ in range(3):
        again = compiled(graph)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_exception_on_one_rank_ends_all(size: int, steps: int) -> None:
    """Whichever rank fails, after how many collectives: the caller gets its exception and no thread is left."""
    before = threading.active_count()
    for bad in range(size):
        passed: list[int] = []

        def work(comm: Communicator, bad: int = bad, passed: list[int] = passed) -> None:
            for _ in range(steps):
                comm.all_reduce(torch.ones(1))
            if comm.rank == bad:
                raise ValueError(f"rank {bad} is out of atoms")
            comm.all_reduce(torch.ones(1))
            passed.append(comm.rank)

        with pytest.raises(ValueError, match=f"^rank {bad} is out of atoms$"):
            run(size, work)
        assert passed == []
    assert threading.active_count() == before


def test_a_world_serves_again_after_a_failure() -> None:
    world = LocalWorld(2)

    def fail(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("gone")
        comm.all_reduce(torch.ones(1))

    with pytest.raises(KeyError):
        within(20, lambda: world.run(fail))
    assert within(20, lambda: world.run(lambda comm: float(comm.all_reduce(torch.ones(()))))) == [2.0, 2.0]


def exchange(comm: Communicator) -> Any:
    return comm.all_to_all(torch.ones(comm.size), [1] * comm.size, [1] * comm.size)


def reduce(comm: Communicator) -> Any:
    return comm.all_reduce(torch.ones(()))


def gather(comm: Communicator) -> Any:
    return comm.all_gather_objects(comm.rank)


def nothing(comm: Communicator) -> Any:
    return None


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(
    ("common", "odd"),
    [(exchange, reduce), (reduce, gather), (gather, exchange), (reduce, nothing), (nothing, reduce)],
)
def test_different_collectives_are_an_error(size: int, common: Any, odd: Any) -> None:
    """One rank calls another collective than the others, or one more or less: RankError says who called what."""
    names = {exchange: "all_to_all", reduce: "all_reduce sum", gather: "all_gather", nothing: "the end"}
    for stray in range(size):

        def work(comm: Communicator, stray: int = stray) -> None:
            reduce(comm)
            (odd if comm.rank == stray else common)(comm)

        expected = ", ".join(names[odd if r == stray else common] for r in range(size))
        with pytest.raises(RankError, match=f"different collectives: {expected}"):
            run(size, work)


def test_different_reductions_are_an_error() -> None:
    """A sum on one rank and a maximum on another have no result."""
    with pytest.raises(RankError):
        run(2, lambda comm: comm.all_reduce(torch.ones(()), ("sum", "amax")[comm.rank]))


def test_splits_that_do_not_fit_are_an_error() -> None:
    """Rows announced and rows sent differ: an exception, on the caller's side."""
    with pytest.raises(RuntimeError):
        run(2, lambda comm: comm.all_to_all(torch.ones(3), [1, 1], [1, 1]))


@pytest.mark.parametrize("counts", [[2, 0, 1], [0, 0, 0], [0, 0, 4], [1, 1, 1]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_gathering_uneven_rows(counts: list[int], dtype: torch.dtype) -> None:
    """Ranks with any number of rows, none among them; wide rows keep their width."""
    whole = torch.arange(sum(counts) * 2).reshape(-1, 2).to(dtype)
    parts = whole.split(counts)
    for result in run(3, lambda comm: comm.all_gather(parts[comm.rank], counts)):
        assert result.dtype == dtype
        assert torch.equal(result, whole)


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_transposes(size: int) -> None:
    """Rank r sends r + q rows (r, q) to rank q; rank q finds them by sender."""

    def work(comm: Communicator) -> Tensor:
        send = [comm.rank + q for q in range(size)]
        pairs = [(comm.rank, q) for q in range(size) for _ in range(send[q])]
        rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return comm.all_to_all(rows, send, send)

    for q, received in enumerate(run(size, work)):
        assert received.tolist() == [[r, q] for r in range(size) for _ in range(r + q)]


@pytest.mark.parametrize("enabled", [True, False])
def test_ranks_have_the_callers_gradient_mode(enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        assert LocalWorld(2).run(lambda comm: torch.is_grad_enabled()) == [enabled, enabled]


def test_the_communicator_is_that_of_the_running_rank() -> None:
    assert run(3, lambda comm: communicator() is comm) == [True] * 3
    with pytest.raises(RankError, match="outside of a world"):
        communicator()


def test_worlds_nest() -> None:
    """A rank may run a world of its own and is itself again afterwards."""

    def work(comm: Communicator) -> tuple[list[int], bool]:
        inner = LocalWorld(2).run(lambda inner: inner.rank)
        return inner, communicator() is comm

    assert run(2, work) == [([0, 1], True)] * 2


def test_a_world_has_a_rank() -> None:
    with pytest.raises(ValueError, match="at least one rank, not 0"):
        LocalWorld(0)


def test_devices_of_ranks() -> None:
    """Each rank has one; what is not there is named before anything is compiled."""
    world = LocalWorld(devices=["cpu", torch.device("cpu")])
    assert (world.size, world.virtual, repr(world)) == (2, True, "LocalWorld(devices=['cpu', 'cpu'])")
    assert world.run(lambda comm: comm.device) == [torch.device("cpu")] * 2
    missing = "CUDA" if torch.version.cuda is None else "NVIDIA driver"  # as builds of torch say it
    with pytest.raises(ValueError, match=rf"device 'cuda:7' cannot be used on this machine: .*{missing}"):
        LocalWorld(devices=["cpu", "cuda:7"])
    with pytest.raises(ValueError, match="3 ranks need 3 devices, not 1"):
        LocalWorld(3, devices=["cpu"])
    with pytest.raises(ValueError, match="at least one rank, not 0"):
        LocalWorld(devices=[])


def test_without_a_process_group_there_is_one_rank() -> None:
    assert not dist.is_initialized()
    assert repr(default_world()) == "LocalWorld(1)"
    with pytest.raises(RankError, match="torchrun"):
        ProcessGroupWorld()


class Highest(torch.nn.Module):
    """An energy with the largest of all atoms' sums."""

    def __init__(self) -> None:
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        positions = graph["positions"].requires_grad_(True)
        sender, receiver = graph["edge_index"]
        r = (positions[sender] - positions[receiver]).norm(dim=1)
        sums = positions.new_zeros(len(positions)).index_add(0, receiver, torch.exp(-self.width * r))
        energy = sums.sum() + sums.square().amax(0)
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        return {"energy": energy, "forces": -gradient}


def test_a_training_step_of_a_maximum_on_more_ranks_than_atoms() -> None:
    """The largest of no rows is less than any other rank's."""
    model = Highest().train()
    compiled = distcompile.compile(model, random_graph(14, 1), world=LocalWorld(9), validate=False)
    graph = random_graph(4, 3)
    found = []
    for call in (model, compiled):
        result = call({k: v.clone() for k, v in graph.items()})
        loss = result["energy"] + result["forces"].square().sum()
        found.append((result["energy"], result["forces"], *torch.autograd.grad(loss, [model.width])))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
