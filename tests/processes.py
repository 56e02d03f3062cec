"""Run a function on real processes that form a gloo group, and get every rank's result or exception back.

Processes start slowly (they import torch), so those of one number of ranks are kept for the next call; each call gets a
process group of its own. Ranks that do not answer are killed and fail the test: a hang is a result, not an accident.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist

TIMEOUT = 120.0
"""Seconds after which ranks that have not answered are taken for hanging."""

STARTING = 240.0
"""Seconds more for the first call of a team: its processes import torch and packages of models, beside two tests and
compilers."""

_teams: dict[tuple[int, str], _Team] = {}


def run_ranks(n: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT, team: str = "") -> list[Any]:
    """Call ``function(*args)`` on `n` processes of one gloo group.

    Args:
        n: number of processes.
        function: a function of a module, since processes import it.
        args: what it is called with on every rank; may be pickled.
        timeout: seconds; longer fails the test.
        team: processes that are kept for calls of this name alone, if these change torch for good.

    Returns:
        By rank, what the function returned or the exception that it raised.
    """
    key = n, team
    if key not in _teams:
        _teams[key] = _Team(n)
    try:
        return _teams[key].call(function, args, timeout)
    except BaseException:
        _teams.pop(key).end()
        raise


class _Team:
    """Processes that wait for functions to call."""

    def __init__(self, n: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        self._starting = STARTING
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(n):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, n, theirs, self._stacks(rank)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        atexit.register(self.end)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        """Results or exceptions by rank."""
        deadline = time.monotonic() + timeout + self._starting
        self._starting = 0.0
        with tempfile.TemporaryDirectory() as folder:
            for pipe in self._pipes:
                pipe.send_bytes(pickle.dumps((os.path.join(folder, "store"), function, args)))
            silent = [r for r, pipe in enumerate(self._pipes) if not pipe.poll(max(0.0, deadline - time.monotonic()))]
            if silent:
                where = "".join(f"\n\nrank {r}:\n{self._where(r)}" for r in silent)
                pytest.fail(f"{function.__name__}: silent for more than {timeout} s{where}")
            answers = [pickle.loads(pipe.recv_bytes()) for pipe in self._pipes]
            # All have answered: only now does any rank leave the group, or a rank that waits for one that
            # failed would be told that it is gone.
            for pipe in self._pipes:
                pipe.send("leave")
            for pipe in self._pipes:
                pipe.recv()
        return answers

    def _stacks(self, rank: int) -> str:
        """The file that a rank writes its stacks to when it is asked for them."""
        return os.path.join(self._folder.name, str(rank))

    def _where(self, rank: int) -> str:
        """The stack of each thread of a rank."""
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        time.sleep(1.0)
        with open(self._stacks(rank)) as file:
            return file.read()

    def end(self) -> None:
        """End the processes of this team."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join(10)


def _serve(rank: int, n: int, pipe: Connection, stacks: str) -> None:
    torch.set_num_threads(1)
    with open(stacks, "w") as file, contextlib.suppress(EOFError, ConnectionError):  # the test run has ended
        faulthandler.register(signal.SIGUSR1, file)
        while True:
            _answer(rank, n, pipe)


def _answer(rank: int, n: int, pipe: Connection) -> None:
    store, function, args = pickle.loads(pipe.recv_bytes())
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=n, timeout=datetime.timedelta(seconds=TIMEOUT)
    )
    try:
        answer = function(*args)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        answer = error
    pipe.send_bytes(_pickled(answer))
    pipe.recv()
    dist.destroy_process_group()
    pipe.send("left")


def _pickled(answer: Any) -> bytes:
    """The answer; of an exception that cannot be pickled, its text."""
    with contextlib.suppress(Exception):
        data = pickle.dumps(answer)
        pickle.loads(data)
        return data
    return pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}"))
