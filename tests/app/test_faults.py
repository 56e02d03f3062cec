"""Ranks that are killed, stopped or out of memory: the others end, one says why, nothing is left, and runs go on."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from processes import run_ranks
from runs import Run, check_resumes, descendants, listening, one_message

import distcompile
from distcompile import LocalWorld, OutOfMemory
from distcompile.app import checkpoint, launch
from distcompile.app.watch import SILENT, STOPPED, _fate

Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs in a folder of their own, and leaves none."""
    if not Path("/proc/self/task").exists():
        pytest.skip("processes are found by /proc")
    runs: list[Run] = []

    def run(*arguments: str, **options: Any) -> Run:
        runs.append(Run(tmp_path, *arguments, **options))
        return runs[-1]

    yield run
    for made in runs:
        made.clean()


def test_ranks_of_one_machine_meet_where_no_other_machine_reaches(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever interface others are told to use: all that listens is on the loopback interface."""
    others = [name for _, name in socket.if_nameindex() if not name.startswith("lo")]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", ",".join(others))
    with socket.create_server(("0.0.0.0", 0)):
        assert listening([os.getpid()])["0.0.0.0"] == {os.getpid()}, "what listens everywhere is found"
    run = start("--steps", "100000")
    ranks = run.after_a_checkpoint()
    found = listening(descendants(run.launcher.pid))
    assert set().union(*found.values()) == {run.launcher.pid, *ranks}
    assert set(found) <= {"127.0.0.1", "::1"}


def test_a_killed_rank(start: Start) -> None:
    """In the middle of a step: all end, one line names the rank and the checkpoint, and the run can go on."""
    run = start("--steps", "100000", ranks=3)
    ranks = run.after_a_checkpoint()
    assert len(ranks) == 3
    os.kill(ranks[1], signal.SIGKILL)
    code, _, stderr = run.end(within=30)
    assert code == 1
    said = one_message(stderr)
    assert "Rank 1 was lost: it was killed" in said
    assert f"The last checkpoint is c.npz, of step {checkpoint.read(run.folder / 'c.npz').step}." in said
    check_resumes(run.folder / "c.npz", 20)


def test_a_stopped_rank(start: Start) -> None:
    """It hears no signal but one, and its collectives wait for ever: the others notice, and end it."""
    run = start("--steps", "100000")
    ranks = run.after_a_checkpoint()
    os.kill(ranks[1], signal.SIGSTOP)
    code, _, stderr = run.end(within=30)
    assert code == 1
    assert "Rank 1 was lost: it has been stopped for" in one_message(stderr)
    assert "The last checkpoint is c.npz, of step" in stderr


def test_started_again(start: Start) -> None:
    """torchrun starts the ranks again, and they go on from the checkpoint to the same end."""
    run = start("--steps", "100", "--max-restarts", "1")
    os.kill(run.after_a_checkpoint()[1], signal.SIGKILL)
    run.ranks = []  # others take their place
    code, stdout, stderr = run.end(within=120)
    assert code == 0, stderr
    assert "Resuming. The last checkpoint is c.npz, of step" in stdout
    assert checkpoint.read(run.folder / "c.npz").step == 100
    check_resumes(run.folder / "c.npz", 0)


def test_the_launcher_is_killed(start: Start) -> None:
    """Nobody is left to end the ranks: they end by themselves."""
    run = start("--steps", "100000")
    ranks = run.after_a_checkpoint()
    run.launcher.kill()
    run.launcher.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, "ranks are left"
        time.sleep(0.2)
    assert "torchrun, or rank 0" in one_message(run.launcher.communicate()[1])


def test_the_one_who_speaks_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank that was ended before its line was out leaves it to the launcher; one that got it out does not."""
    monkeypatch.setenv(launch.VOICE, str(tmp_path / "voice"))
    (tmp_path / "voice.0").touch()
    launch.say("too late")
    launch._say_last("Rank 1 was lost.")
    launch._say_last("Rank 1 was lost, again.")
    assert capsys.readouterr().err == "distcompile: Rank 1 was lost.\n"


def speak_on(ranks: list[int]) -> str:
    """What this rank prints while some ranks say something."""
    rank = torch.distributed.get_rank()
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        if rank in ranks:
            launch.say(f"rank {rank} fails")
        torch.distributed.barrier()
    return printed.getvalue()


@pytest.mark.parametrize("ranks", [[1], [0, 1, 2]])
def test_one_of_the_ranks_that_fail_speaks(ranks: list[int]) -> None:
    """In a job that somebody else started: whichever it is, also if the first rank has nothing to say."""
    said = [error for error in run_ranks(3, speak_on, ranks) if error]
    assert len(said) == 1
    assert said[0] in [f"distcompile: rank {rank} fails\n" for rank in ranks]


def test_who_is_lost() -> None:
    """A rank elsewhere by its silence; one of this machine by its process, however long it is silent."""
    own, ended = os.getpid(), subprocess.Popen(["true"])
    ended.wait()
    assert _fate(SILENT - 1, None) == ""
    assert _fate(SILENT, None) == "has not answered for 22 s"
    assert _fate(1000, own) == "", "busy in one long call"
    assert _fate(0, ended.pid) == "was killed or crashed"
    stopped = subprocess.Popen(["sleep", "60"])
    stopped.send_signal(signal.SIGSTOP)
    while "T" not in Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2]:
        time.sleep(0.01)
    assert _fate(STOPPED - 1, stopped.pid) == ""
    assert _fate(STOPPED, stopped.pid) == "has been stopped for 12 s"
    stopped.kill()
    stopped.wait()


# ---- memory


def exhausted(*_: Any) -> Any:
    """What happens where memory is not to be had: torch's own error."""
    return torch.empty(2**55, dtype=torch.uint8)


def out_of_memory(rank: int) -> Any:
    """Run out of memory on one rank."""
    model = distcompile.compile(toys.Gnn().eval(), toys.random_graph(14, 1), validate=False)
    graph = toys.random_graph(30, 3)
    model(graph)
    if torch.distributed.get_rank() == rank:
        model.world.run = exhausted  # type: ignore[method-assign]
        return model(graph)
    return [row["peak_memory"] for row in model.stats(graph)]


def test_out_of_memory_on_one_rank() -> None:
    """That rank says what was predicted, and which `memory=` accepts the graph; it accepts it, and half of it not."""
    predicted, answer = run_ranks(2, out_of_memory, 1)
    assert isinstance(answer, OutOfMemory), answer
    assert isinstance(answer, MemoryError)
    assert "Rank 1 of 2 ran out of memory" in str(answer)
    assert f"about {predicted[1] / 1e9:.2f} GB" in str(answer)
    assert f"memory={max(predicted)} " in str(answer)
    graph, world = toys.random_graph(30, 3), LocalWorld(2)
    for memory in (max(predicted), max(predicted) // 2):
        model = distcompile.compile(
            toys.Gnn().eval(), toys.random_graph(8, 1), validate=False, memory=memory, world=world
        )
        if memory == max(predicted):
            model(graph)
        else:
            with pytest.raises(distcompile.InputError, match=r"Use .* ranks or more, or raise memory="):
                model(graph)


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("something else")

    graph = toys.random_graph(14, 1)
    model = distcompile.compile(toys.Gnn().eval(), graph, validate=False)
    model.executor_for(graph)._run = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="something else") as caught:
        model(graph)
    assert not isinstance(caught.value, OutOfMemory)
