"""Compile C++ of component code, and load what was compiled before."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from ..cache import cache_folder
from .elements import Unsupported

K = TypeVar("K")
V = TypeVar("V")

FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-w",
)
"""Rounding and special values stay as the C++ standard has them, but for fused products and sums."""


def native() -> tuple[str, ...]:
    """The option that lets a compiler use all instructions of this processor."""
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


REGISTERS = {"__AVX512F__": 64, "__AVX2__": 32}
"""Bytes of a vector register, by what a compiler defines where there are the instructions for it."""
SMALLEST_REGISTER = 16


@functools.cache
def register_bytes(instructions: tuple[str, ...]) -> int:
    """Bytes of a vector register, where a compiler uses these instructions."""
    command = [str(compiler()), *instructions, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        defined = subprocess.run(command, capture_output=True, text=True).stdout.split()
    except OSError:  # no compiler: nothing will be compiled
        return SMALLEST_REGISTER
    return next((size for macro, size in REGISTERS.items() if macro in defined), SMALLEST_REGISTER)


def compiler() -> str | None:
    """The path of this machine's C++ compiler; None if it has none."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def processes() -> int:
    """The number of compilers that run side by side."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[K], V], keys: Sequence[K]) -> dict[K, V]:
    """What work makes of each key, on several threads that wait for compilers.

    The threads do not outlive the program, as those of a pool would.
    """
    waiting, found, failed = list(keys[::-1]), dict[K, V](), list[BaseException]()

    def run() -> None:
        while waiting and not failed:
            try:
                key = waiting.pop()
            except IndexError:
                return
            try:
                found[key] = work(key)
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(processes(), len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def name_of(source: str, instructions: tuple[str, ...]) -> str:
    """The name under which a program is kept."""
    return hashlib.sha256("\n".join([source, *FLAGS, *instructions, str(compiler())]).encode()).hexdigest()


def loaded(source: str, instructions: tuple[str, ...] = native()) -> ctypes.CDLL:
    """The library of a program, compiled unless it was on this machine before.

    Raises:
        Unsupported: the C++ compiler does not take it.
    """
    path = cache_folder() / f"{name_of(source, instructions)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                _compile(source, instructions, path)
    return ctypes.CDLL(str(path))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one rank of a machine compile, while the others wait for what it makes."""
    try:
        import fcntl
    except ImportError:  # not on this system: each rank compiles for itself
        yield
        return
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(source: str, instructions: tuple[str, ...], path: Path) -> None:
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory() as folder:
        text, result = Path(folder) / "code.cpp", Path(folder) / "code.so"
        text.write_text(source)
        link = [f"-L{libraries}", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]  # for Sleef's functions
        command = [str(compiler()), *FLAGS, *instructions, "-o", str(result), str(text), *link]
        polite = [nice, "-n", "10"] if (nice := shutil.which("nice")) else []
        done = subprocess.run([*polite, *command], capture_output=True, text=True)
        if done.returncode:
            raise Unsupported(f"the C++ compiler: {done.stderr.strip().splitlines()[:1]}")
        unfinished = path.with_suffix(f".{os.getpid()}")
        shutil.copyfile(result, unfinished)
        os.replace(unfinished, path)  # other processes, on other machines too, may look for it at any time
