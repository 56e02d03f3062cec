"""NVIDIA's compiler of CUDA C++ as a library: it needs no GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from ..elements import Unsupported

OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--disable-warnings")


@dataclasses.dataclass(frozen=True)
class Binary:
    """A program for one architecture."""

    code: bytes
    registers: int
    """Registers of a thread."""
    spilled: int
    """Bytes that a thread writes to memory for want of registers."""


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """The library, which PyTorch for CUDA brings along (``pip install nvidia-cuda-nvrtc``); None if there is none."""
    for name in _names():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _names() -> Iterator[str]:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        found = (p for p in sorted(Path(folder).rglob("libnvrtc.so.*"), reverse=True) if ".alt." not in p.name)
        yield from map(str, found)
    if (name := ctypes.util.find_library("nvrtc")) is not None:
        yield name


def binary(source: str, architecture: str) -> Binary:
    """Compile a program for an architecture, as ``"sm_90"``.

    Raises:
        Unsupported: there is no NVRTC, or it refuses the program.
    """
    library = nvrtc()
    if library is None:
        raise Unsupported("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    program = ctypes.c_void_p()
    given = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS)]
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"body.cu", 0, None, None))
    try:
        failed = library.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        log = _text(library, "ProgramLog", program).decode()
        if failed:
            raise Unsupported(f"NVRTC: {(log.strip().splitlines() or [str(failed)])[0]}")
        code = _text(library, "CUBIN", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    registers, spilled = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes spill stores", log)
    return Binary(code, int(registers[1]) if registers else -1, int(spilled[1]) if spilled else -1)


def _text(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, text))
    return text.raw if what == "CUBIN" else text.value


def _check(library: ctypes.CDLL, result: int) -> None:
    if result:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise Unsupported(f"NVRTC: {library.nvrtcGetErrorString(result).decode()}")
