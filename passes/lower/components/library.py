"""Compile C++ of component code, and load what was compiled before."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from ..cache import cache_folder
from .elements import Unsupported

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


def compiler() -> str | None:
    """The path of this machine's C++ compiler; None if it has none."""
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def processes() -> int:
    """The number of compilers that run side by side."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name_of(source: str) -> str:
    """The name under which a program is kept."""
    return hashlib.sha256("\n".join([source, *FLAGS, *native(), str(compiler())]).encode()).hexdigest()


def loaded(source: str) -> ctypes.CDLL:
    """The library of a program, compiled unless it was on this machine before.

    Raises:
        Unsupported: the C++ compiler does not take it.
    """
    path = cache_folder() / f"{name_of(source)}.so"
    if not path.exists():
        _compile(source, path)
    return ctypes.CDLL(str(path))


def _compile(source: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, result = Path(folder) / "code.cpp", Path(folder) / "code.so"
        text.write_text(source)
        link = [f"-L{libraries}", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]  # for Sleef's functions
        command = [str(compiler()), *FLAGS, *native(), "-o", str(result), str(text), *link]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unsupported(f"the C++ compiler: {done.stderr.strip().splitlines()[:1]}")
        os.replace(result, path)  # other processes, on other machines too, may look for it at any time
