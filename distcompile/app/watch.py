"""Notice a rank that is gone or stopped: every rank has a heartbeat in the job's store and watches the others' beats.

A collective with a rank that was killed fails at once, but names no rank; one with a rank that was stopped waits. Beats
come from a thread, so no rank is lost in long work between two collectives (the first compilation).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import PrefixStore, Store

BEAT = 1.0
"""Seconds between two beats."""
STOPPED = 12
"""A rank of this machine whose process is stopped is lost after so many beats of the watching rank."""
SILENT = 22
"""A rank of another machine that has not beaten is lost after so many beats of the watching rank."""
ANSWER = 10.0
"""Seconds that the store may take to answer."""
ENDED = "ended"


class Watch:
    """The heartbeat of this rank, and the watch over all others.

    Args:
        store: of the job, reachable by every rank; an own connection to it is made.
        rank: of this process.
        size: number of ranks.
        say: prints a message, once for all ranks.
        report: what to add to a message about a lost rank: the last checkpoint.
    """

    def __init__(
        self, store: Store, rank: int, size: int, say: Callable[[str, bool], None], report: Callable[[], str]
    ) -> None:
        self._store = PrefixStore("watch", store.clone())  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=ANSWER))
        self._rank, self._size, self._say, self._report = rank, size, say, report
        self._local: dict[int, int] = {}
        self._over = threading.Event()
        self._ended, self._others_ended = threading.Event(), threading.Event()
        self._others = [q for q in range(size) if q != rank]
        self._beats = 0
        self._answered = 0
        self._heard: dict[int, str] = {}
        self._store.set(f"beat {rank}", "0")
        self._store.set(f"place {rank}", f"{socket.gethostname()} {os.getpid()}")
        # A question to a store whose process is stopped never returns, so the thread that asks cannot watch.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._watch)]

    def start(self) -> None:
        """Begin to watch, when all ranks have joined."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Tell the others that this rank ends, or has given the reason for its end: it is not missed from now on."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"beat {self._rank}", ENDED)

    def stop(self) -> None:
        """End the watch: all ranks have ended."""
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER)

    def wait(self) -> bool:
        """A collective failed: give the watch time to find the rank that is gone, which ends this process.

        Returns:
            True if another rank has ended by itself, and given the reason.
        """
        return self._others_ended.wait((SILENT + 3) * BEAT)

    def _talk(self) -> None:
        """Beat, and read the others' beats."""
        names = [f"beat {q}" for q in self._others]
        try:
            places = self._store.multi_get([f"place {q}" for q in self._others])
            self._local = {
                q: int(place.split()[1])
                for q, place in zip(self._others, places, strict=True)
                if place.decode().split()[0] == socket.gethostname()
            }
            while not self._over.wait(BEAT):
                if not self._ended.is_set():
                    self._store.set(f"beat {self._rank}", str(self._beats))
                beats = self._store.multi_get(names)
                self._heard = {q: beat.decode() for q, beat in zip(self._others, beats, strict=True)}
                self._answered = self._beats
        except RuntimeError as error:  # the process that holds the store is gone
            self._lose_store(f"was lost ({str(error).splitlines()[0][:80]})")

    def _watch(self) -> None:
        """Count the own beats, and find ranks whose beats have stopped."""
        missed = dict.fromkeys(self._others, 0)
        seen = dict(self._heard)
        while not self._over.wait(BEAT):
            self._beats += 1
            if self._beats - self._answered >= SILENT:
                self._lose_store(f"has not answered for {SILENT * BEAT:.0f} s")
            heard = dict(self._heard)
            missed = {q: missed[q] + 1 if heard.get(q) == seen.get(q) else 0 for q in self._others}
            seen = heard
            if ENDED in heard.values():
                self._others_ended.set()
            lost = {
                q: how for q in self._others if heard.get(q) != ENDED and (how := _fate(missed[q], self._local.get(q)))
            }
            if lost:
                self._lose(lost)

    def _lose(self, lost: dict[int, str]) -> None:
        """Report the lost ranks, end their processes on this machine, and end this rank."""
        first = min(set(range(self._size)) - lost.keys())
        self._speak(" ".join(f"Rank {q} was lost: it {how}." for q, how in lost.items()), self._rank == first)
        for q in lost.keys() & self._local.keys():  # not before: torchrun ends all ranks when one is killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._local[q], signal.SIGKILL)  # a stopped process reacts to nothing else
        os._exit(1)

    def _lose_store(self, how: str) -> None:
        if not self._over.is_set() and not self._ended.is_set():
            self._speak(f"The process that holds the job's store (torchrun, or rank 0) {how}.", True)
            os._exit(1)

    def _speak(self, message: str, speaks: bool) -> None:
        self._say(f"{message} {self._report()}".strip(), speaks)
        sys.stdout.flush()


def _fate(missed: int, process: int | None) -> str:
    """The fate of a rank; empty if it lives.

    A rank of this machine is known by its process: one that is busy in a long call beats late and is not lost.
    """
    state = _state(process) if process is not None else ""
    if state in ("gone", "Z", "X"):
        return "was killed or crashed"
    if state in ("T", "t"):
        return f"has been stopped for {missed * BEAT:.0f} s" if missed >= STOPPED else ""
    return f"has not answered for {missed * BEAT:.0f} s" if missed >= SILENT and not state else ""


def _state(process: int) -> str:
    """The state of a process as Linux names it; "gone" if there is no such process; empty if it cannot be known."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
