"""Runs of the command that are made to fail: started in processes of their own, killed, and taken up again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import structures
from ase.io import read, write
from springs import SpringCalculator

import distcompile
from distcompile import LocalWorld
from distcompile.app import checkpoint
from distcompile.app.dynamics import Ensemble, Md, Output, run_md

SPRINGS = Path(__file__).parent / "springs.py"
NAME = "springs.py:SpringCalculator"


def descendants(process: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    return [
        process,
        *(pid for path in children for child in path.read_text().split() for pid in descendants(int(child))),
    ]


def listening(processes: list[int]) -> dict[str, set[int]]:
    """Addresses at which processes listen, as the kernel's tables of sockets have them, and which processes do."""
    owners: dict[str, set[int]] = {}
    for pid in processes:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                owners.setdefault(os.readlink(descriptor), set()).add(pid)
    found: dict[str, set[int]] = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in owners:
                digits = local.partition(":")[0]
                words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
                found.setdefault(socket.inet_ntop(family, b"".join(words)), set()).update(owners[f"socket:[{inode}]"])
    return found


class Run:
    """``distcompile run`` in a folder, and the processes that it started."""

    def __init__(self, folder: Path, *arguments: str, ranks: int = 2) -> None:
        write(folder / "oxide.extxyz", structures.crystal((2, 1, 1)))
        shutil.copy(SPRINGS, folder)
        environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
        environment |= {"COLUMNS": "120", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "distcompile.app.cli", "run", "oxide.extxyz", "--task", "md"]
        command += ["--calculator", NAME, "--ensemble", "nvt", "--checkpoint", "c.npz", "--checkpoint-every", "5"]
        command += ["--ranks", str(ranks), *arguments]
        self.folder = folder
        self.launcher = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.ranks: list[int] = []

    def after_a_checkpoint(self) -> list[int]:
        """Wait until steps are done; the process of every rank."""
        deadline = time.monotonic() + 120
        while not (self.folder / "c.npz").exists():
            assert self.launcher.poll() is None, self.launcher.communicate()
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.05)
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text()
        self.ranks = sorted(int(pid) for pid in children.split())
        return self.ranks

    def end(self, within: float) -> tuple[int, str, str]:
        """Exit code and output of a run that ends in time and leaves no process."""
        stdout, stderr = self.launcher.communicate(timeout=within)
        assert [pid for pid in self.ranks if Path(f"/proc/{pid}").exists()] == []
        return self.launcher.returncode, stdout, stderr

    def clean(self) -> None:
        """Leave nothing of a test that failed."""
        for pid in (self.launcher.pid, *self.ranks):
            if Path(f"/proc/{pid}").exists() and self.launcher.poll() is None:
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()


def one_message(stderr: str) -> str:
    """The one line that a run said."""
    (line,) = [line for line in stderr.splitlines() if line.strip()]
    assert line.startswith("distcompile: ")
    return line


def check_resumes(path: Path, steps: int, within: float = 1e-12) -> None:
    """Go on from a checkpoint on 2 ranks for some steps: to where an uninterrupted run gets (to `within` A)."""
    step = checkpoint.read(path).step
    whole, resumed = (read(path.parent / "oxide.extxyz") for _ in range(2))  # a text file: its positions are rounded
    whole.calc = SpringCalculator()
    resumed.calc = distcompile.distribute(SpringCalculator(), world=LocalWorld(2))
    how = Md(Ensemble.nvt, step + steps, checkpoint=path, checkpoint_every=10**6)
    assert run_md(resumed, how, Output(), lambda _: None, calculator=NAME, resume=True) == step
    run_md(whole, Md(Ensemble.nvt, step + steps), Output(), lambda _: None)
    np.testing.assert_allclose(resumed.positions, whole.positions, rtol=0, atol=within)
    np.testing.assert_allclose(resumed.get_momenta(), whole.get_momenta(), rtol=0, atol=within)
