"""Blocks of rows on several threads: taken in order, alike for any number of threads, and never waiting for ever."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import toys
from adversaries import Toy, add_to
from torch import Tensor, nn

import distcompile
from distcompile import LocalWorld
from distcompile.ir.tree import flatten
from distcompile.runtime.execution import in_step, tiles
from distcompile.runtime.execution.blocks import in_order
from distcompile.runtime.execution.tiles import Region

PATIENCE = 60.0
"""Seconds after which something is taken to wait for ever."""


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Leave the number of threads as it was found."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_time(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; fails if it does neither."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert ended, "waits for ever"
    result, error = ended[0]
    if error is not None:
        raise error
    return result


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_results_are_taken_in_order(count: int, threads: int) -> None:
    """Each block is worked on once and taken once, in order, though later blocks are ready first."""
    worked, taken = [], []

    def work(i: int) -> int:
        time.sleep(0.001 * ((3 * i) % 5))
        worked.append(i)
        return i * i

    in_time(lambda: in_order(count, threads, work, lambda i, value: taken.append((i, value))))
    assert taken == [(i, i * i) for i in range(count)]
    assert sorted(worked) == list(range(count))


def test_blocks_run_at_the_same_time() -> None:
    """As many as there are threads, each on a thread of its own, with one thread for operators and no gradients."""
    together = threading.Barrier(3)
    seen = []

    def work(i: int) -> str:
        together.wait(PATIENCE)  # breaks unless three get here
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return threading.current_thread().name

    names: list[str] = []
    torch.set_num_threads(3)
    with torch.enable_grad():
        in_time(lambda: in_order(9, 3, work, lambda i, name: names.append(name)))
    assert len(set(names)) == 3
    assert set(seen) == {(1, False)}
    assert torch.get_num_threads() == 3, "the caller's setting"
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert others == [3], "and that of threads started later"


def test_no_more_results_wait_than_there_are_threads() -> None:
    """A slow first block does not let all others pile up in memory."""
    waiting, most = 0, 0
    lock = threading.Lock()

    def work(i: int) -> None:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.2 if i == 0 else 0.0)

    def take(i: int, _: None) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1

    in_time(lambda: in_order(40, 4, work, take))
    assert waiting == 0
    assert 2 <= most <= 4


def test_one_thread_is_the_callers() -> None:
    """Nothing is handed over for a single block, or where there is a single thread."""
    names = []
    for count, threads in ((1, 4), (5, 1)):
        in_order(count, threads, lambda i: threading.get_ident(), lambda i, name: names.append(name))
    assert names == [threading.get_ident()] * 6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [0, 4, 11])
@pytest.mark.parametrize("where", ["work", "take"])
def test_the_error_of_a_block_is_raised(where: str, bad: int, threads: int) -> None:
    """By the call, when all threads have ended; nothing after that block is taken, and the next call works."""
    taken: list[int] = []
    running = 0
    lock = threading.Lock()

    def fail(i: int, here: str) -> None:
        if i == bad and where == here:
            raise ArithmeticError(f"block {i}")

    def work(i: int) -> None:
        nonlocal running
        with lock:
            running += 1
        try:
            time.sleep(0.002 * ((3 * i) % 5))
            fail(i, "work")
        finally:
            with lock:
                running -= 1

    def take(i: int, _: None) -> None:
        fail(i, "take")
        taken.append(i)

    with pytest.raises(ArithmeticError, match=f"block {bad}"):
        in_time(lambda: in_order(12, threads, work, take))
    assert running == 0
    assert taken == list(range(len(taken)))
    assert len(taken) <= bad
    again: list[int] = []
    in_time(lambda: in_order(6, threads, lambda i: i, lambda i, value: again.append(value)))
    assert again == list(range(6))


def test_several_callers_share_the_threads() -> None:
    """More calls at once than threads: each has its own order, none waits for another that has not begun."""
    results: dict[int, list[int]] = {n: [] for n in range(6)}

    def call(n: int) -> None:
        in_order(15, 3, lambda i: time.sleep(0.001) or i, lambda i, value: results[n].append(value))

    def all_calls() -> None:
        callers = [threading.Thread(target=call, args=(n,), daemon=True) for n in results]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    in_time(all_calls)
    assert all(found == list(range(15)) for found in results.values())


def test_there_is_one_pool_for_short_work_and_long() -> None:
    """Work for 2, 3, ... 6 of 6 threads does not start 20 threads."""
    torch.set_num_threads(6)
    before = set(threading.enumerate())
    for threads in range(2, 7):
        in_time(lambda t=threads: in_order(12, t, lambda i: i, lambda i, value: None))
    started = [t for t in set(threading.enumerate()) - before if t.name.startswith("blocks")]
    assert len(started) <= 6


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Hand blocks of any size to threads; (blocks, threads) of every region that ran."""
    ran: list[tuple[int, int]] = []

    def noted(count: int, threads: int, work: Any, take: Any) -> None:
        ran.append((count, threads))
        in_order(count, threads, work, take)

    monkeypatch.setattr(tiles, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(tiles, "in_order", noted)
    monkeypatch.setattr(in_step, "in_order", noted)
    return ran


def assert_close(one: Any, two: Any) -> None:
    """All tensors of two results are the same to 1e-12 of the largest value of each."""
    for a, b in zip(flatten(one)[0], flatten(two)[0], strict=True):
        scale = float(b.tensor.abs().max().clamp(min=1e-6))
        torch.testing.assert_close(a.tensor, b.tensor.detach(), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", ["Gnn", "ThreeBody"])
def test_regions_are_the_same_for_any_number_of_threads(name: str, eager_threads: list[tuple[int, int]]) -> None:
    """On 1 and 2 ranks; the same threads give the same bits."""
    model = getattr(toys, name)().eval()
    options = {"angles": name == "ThreeBody"}
    graph = toys.random_graph(100, 2, **options)
    for ranks in (1, 2):
        example = toys.random_graph(14, 1, **options)
        world = distcompile.compile(model, example, world=LocalWorld(ranks), validate=False, lowering="eager")
        for region in world.program.tiled.children():
            region.block = 50  # many rounds for edges, few for atoms
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            eager_threads.clear()
            found, again = in_time(lambda w=world: (w(graph), w(graph)))
            assert max(n for _, n in eager_threads) == threads
            assert max(count for count, _ in eager_threads) >= 5
            assert torch.get_num_threads() == threads
            assert_close(found, model(graph))
            for a, b in zip(flatten(found)[0], flatten(again)[0], strict=True):
                assert torch.equal(a.tensor, b.tensor), "whatever the threads do"


@pytest.mark.parametrize("rows", [0, 1, 7, 50, 51, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_blocks_are_even_and_fit(threads: int, rows: int, eager_threads: list[tuple[int, int]]) -> None:
    """No block is longer than may be, all rows are in one, and every thread has as many blocks as the others."""
    compiled = distcompile.compile(toys.Pair().eval(), toys.random_graph(14, 1), validate=False)
    region = next(m for m in compiled.program.tiled.children() if isinstance(m, Region))
    region.block = 50
    torch.set_num_threads(threads)
    used, block = region.schedule(rows)
    count = -(-max(rows, 1) // block)
    assert 1 <= used <= threads
    assert 1 <= block <= 50
    if rows >= 50:
        assert used == threads
        assert count % used == 0 or rows % block, "the last round may be short by part of a block"
        assert count <= -(-rows // (50 * used)) * used


def test_small_regions_stay_on_one_thread() -> None:
    """What takes less time than handing it over."""
    compiled = distcompile.compile(toys.Pair().eval(), toys.random_graph(14, 1), validate=False)
    region = next(m for m in compiled.program.tiled.children() if isinstance(m, Region))
    torch.set_num_threads(4)
    worth = int(tiles.WORTH_A_THREAD / region.spec.row_bytes)
    assert region.schedule(worth // 2)[0] == region.schedule(2 * worth - 2)[0] == 1
    assert region.schedule(3 * worth + 3)[0] == 3
    assert region.schedule(100 * worth)[0] == 4


class Dropout(Toy):
    """Messages, some of which are left out at random."""

    def update(self, graph: toys.Graph, h: Tensor, w: Tensor, vectors: Tensor, lengths: Tensor) -> Tensor:
        sender, receiver = graph["edge_index"]
        kept = torch.rand_like(w)
        return torch.tanh(self.mix(h + add_to(kept * w * h[sender], receiver, h)))


def test_a_seed_fixes_random_numbers_on_any_number_of_threads(eager_threads: list[tuple[int, int]]) -> None:
    """Regions that draw run block after block; those that do not, side by side as ever."""
    compiled = distcompile.compile(Dropout().eval(), toys.random_graph(14, 1), world=LocalWorld(1), validate=False)
    for region in compiled.program.tiled.children():
        region.block = 10
    graph, found = toys.random_graph(60, 2), []
    for threads in (1, 4, 4, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found.append(in_time(lambda: compiled(graph)))
    assert (found[0]["forces"] - compiled(graph)["forces"]).abs().max() > 1e-3, "another seed"
    for other in found[1:]:
        assert_close(other, found[0])
    drawing = {r.spec.name: r.spec.in_turn for r in compiled.program.tiled.children()}
    assert list(drawing.values()).count(True) == 1
    assert max(n for _, n in eager_threads) == 4


class Forward(nn.Module):
    """Without gradients inside, so that it can be called in inference mode."""

    def forward(self, graph: toys.Graph) -> dict[str, Tensor]:
        sender, receiver = graph["edge_index"]
        h = graph["positions"].sin()
        largest = h.scatter_reduce(0, receiver[:, None].expand(-1, 3), h[sender].cos(), "amax")
        return {"summed": add_to(h[sender] * h[receiver], receiver, h), "largest": largest, "kept": h[sender]}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("ranks", [1, 2])
def test_regions_run_in_the_callers_mode(ranks: int, mode: Any, eager_threads: list[tuple[int, int]]) -> None:
    """In inference mode, tensors may be changed only by threads that are in it too."""
    torch.set_num_threads(3)
    compiled = distcompile.compile(Forward(), toys.random_graph(14, 1), world=LocalWorld(ranks), validate=False)
    graph = toys.random_graph(30, 2)

    def call() -> Any:
        with mode():
            return compiled(graph)

    found = in_time(call)
    assert max(n for _, n in eager_threads) == 3
    assert_close(found, Forward()(graph))


def test_a_forked_child_has_threads_of_its_own(eager_threads: list[tuple[int, int]]) -> None:
    """Threads do not survive a fork: a child that used its parent's would wait for ever."""
    torch.set_num_threads(3)
    model, graph = toys.Gnn().eval(), toys.random_graph(30, 2)
    compiled = distcompile.compile(model, toys.random_graph(14, 1), world=LocalWorld(1), validate=False)
    expected = in_time(lambda: compiled(graph))

    def child() -> None:
        eager_threads.clear()
        assert_close(compiled(graph), expected)
        assert max(n for _, n in eager_threads) == 3
        assert torch.get_num_threads() == 3

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(PATIENCE)
    hung = process.is_alive()
    process.kill()
    process.join()
    assert not hung
    assert process.exitcode == 0
    assert_close(in_time(lambda: compiled(graph)), expected)
