"""Compilations in child processes: each once on a machine, and nothing depends on a child."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import toys

import distcompile
from distcompile.passes.lower.inductor import generate
from distcompile.passes.lower.inductor.side_by_side import fill_cache

PATIENCE = 60.0
"""Seconds after which something is taken to wait for ever."""


class Fake:
    """Compilations that leave a file for each time they run, in whichever process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, *keys: str, then: Callable[[str], None] = lambda key: None) -> dict[str, Callable[[], None]]:
        """Compilations by key, each of which does something more at its end."""
        return {key: lambda key=key: self._run(key, then) for key in keys}

    def _run(self, key: str, then: Callable[[str], None]) -> None:
        (self.folder / f"{key}.{os.getpid()}.{time.monotonic_ns()}").touch()
        then(key)

    @property
    def ran(self) -> list[str]:
        """The keys of what ran, once for each time."""
        return sorted(path.name.partition(".")[0] for path in self.folder.iterdir())

    @property
    def processes(self) -> set[int]:
        """In which processes."""
        return {int(path.name.split(".")[1]) for path in self.folder.iterdir()}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Fake compilations on a machine of three cores with an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return Fake(tmp_path / "ran")


@pytest.fixture(autouse=True)
def nothing_waits_for_ever() -> Iterator[None]:
    """Kill the children of a test that does, which ends the wait."""
    late = []

    def kill() -> None:
        for child in multiprocessing.active_children():
            late.append(child)
            child.kill()

    timer = threading.Timer(PATIENCE, kill)
    timer.start()
    yield
    timer.cancel()
    assert not late


def known(tmp_path: Path) -> list[str]:
    """The keys that are noted as compiled."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_each_is_compiled_once_by_a_child(fake: Fake, tmp_path: Path) -> None:
    """By as many children as there are cores, one at least; a second call has nothing left to do."""
    keys = [f"k{i}" for i in range(9)]
    fill_cache(fake(*keys, then=lambda key: time.sleep(0.02)), lambda done: None)
    assert fake.ran == keys
    assert os.getpid() not in fake.processes
    assert 1 <= len(fake.processes) <= 3
    assert known(tmp_path) == keys
    fill_cache(fake(*keys), lambda done: None)
    assert fake.ran == keys


def test_children_work_at_the_same_time(fake: Fake) -> None:
    """Each of three compilations waits until all have begun."""

    def meet(key: str) -> None:
        while len(fake.ran) < 3:
            time.sleep(0.01)

    fill_cache(fake("a", "b", "c", then=meet), lambda done: None)
    assert len(fake.processes) == 3


def test_what_is_known_is_skipped(fake: Fake, tmp_path: Path) -> None:
    """Of a second model, only what the first one did not have; a single one is left to the caller."""
    fill_cache(fake("a", "b"), lambda done: None)
    fill_cache(fake("b", "c", "a", "d"), lambda done: None)
    assert fake.ran == ["a", "b", "c", "d"]
    fill_cache(fake("a", "e"), lambda done: None)
    assert fake.ran == ["a", "b", "c", "d"]
    assert known(tmp_path) == ["a", "b", "c", "d"]


def raising(key: str) -> None:
    """A compilation that fails, as its key says."""
    if key.startswith("bad"):
        raise ArithmeticError(key)


def dying(key: str) -> None:
    """A compilation whose process is killed, as for want of memory."""
    if key.startswith("bad"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("fail", [raising, dying])
def test_a_child_that_fails_leaves_its_work_to_the_caller(
    fail: Callable[[str], None], fake: Fake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other children do the rest, nothing is printed, and the failed one counts as not compiled."""
    reported: list[int] = []
    before = set(multiprocessing.active_children())  # of other tests
    fill_cache(fake("bad1", "a", "bad2", "b", "c", then=fail), reported.append)
    assert fake.ran == ["a", "b", "bad1", "bad2", "c"]
    assert known(tmp_path) == ["a", "b", "c"]
    assert max(reported, default=0) <= 3
    assert capfd.readouterr() == ("", "")
    assert set(multiprocessing.active_children()) <= before


def test_when_all_children_fail_the_caller_goes_on(fake: Fake, tmp_path: Path) -> None:
    """And is told of nothing done."""
    reported: list[int] = []
    fill_cache(fake("bad1", "bad2", "bad3", "bad4", then=raising), reported.append)
    assert known(tmp_path) == []
    assert set(reported) <= {0}
    assert fake.ran == ["bad1", "bad2", "bad3"], "a child each; the fourth is the caller's"


def test_reports_only_go_up(fake: Fake) -> None:
    """From what was known at the start, never beyond all."""
    fill_cache(fake("a", "b"), lambda done: None)
    reported: list[int] = []
    keys = "abcdefgh"
    fill_cache(fake(*keys, then=lambda key: time.sleep(0.15)), reported.append)
    assert reported == sorted(reported)
    assert reported[0] >= 2
    assert reported[-1] <= len(keys)
    assert len(set(reported)) >= 3, "it is seen to go on"


@pytest.mark.parametrize("why", ["one core", "a GPU in use", "another system"])
def test_where_processes_cannot_be_had_the_caller_compiles(
    why: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs here; the caller compiles anyway."""
    if why == "one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    elif why == "a GPU in use":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    else:
        monkeypatch.setattr("sys.platform", "darwin")
        monkeypatch.delattr(os, "sched_getaffinity")
    fill_cache(fake("a", "b", "c"), lambda done: None)
    assert fake.ran == []


def test_a_worker_of_a_pool_may_compile(fake: Fake) -> None:
    """Such processes may have no children; they compile by themselves."""
    worker = multiprocessing.get_context("fork").Process(
        target=fill_cache, args=(fake("a", "b", "c"), lambda done: None), daemon=True
    )
    worker.start()
    worker.join(PATIENCE)
    assert worker.exitcode == 0
    assert fake.ran == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_children_compile_what_the_caller_then_loads(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every region comes out of the cache that the children filled."""
    generated = []
    stock = generate._generate
    monkeypatch.setattr(generate, "_generate", lambda *args: (generated.append(args), stock(*args))[1])

    class Two(torch.nn.Module):
        """Work on edges, then on atoms: two regions."""

        def forward(self, graph: toys.Graph) -> torch.Tensor:
            sender, receiver = graph["edge_index"]
            h = graph["positions"]
            h = torch.zeros_like(h).index_add(0, receiver, h[sender].sin())
            return torch.zeros_like(h).index_add(0, receiver, h[sender].cos())

    compiled = distcompile.compile(Two(), toys.random_graph(14, 1), lowering="inductor", validate=False)
    files = [path for path in (tmp_path / "cache" / "distcompile").rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert all(path.stat().st_size for path in files)
    assert generated == []  # in this process
    graph = toys.random_graph(20, 2)
    assert torch.allclose(compiled(graph), Two()(graph), rtol=1e-12)
