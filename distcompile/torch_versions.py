"""Which releases of torch are supported, and what of its inside differs between them.

    2.12    numbers of a count have the type of what is counted      =>  the type that they have when it runs
    2.12    C++ of composite operators asks for plain sizes          =>  torch's Python forms of them
    2.12    libraries have no tables of lines                        =>  none are turned off
    2.12    one method compiles and tries a processor's instructions =>  what loaded is remembered for that one
    2.14    generated code reads sizes where it asserts them         =>  it asserts them

Capture and the code generator take what no release promises to the next one (docs/patches.md). Where two supported
releases differ, they ask here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import VersionError

OLDEST, NEWEST = (2, 12), (2, 14)
"""The releases on which the tests were run."""


def release(version: str) -> tuple[int, int]:
    """The release that a version belongs to: ``2.13.0+cpu`` to (2, 13)."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def check(version: str) -> None:
    """Refuse a torch of another release.

    Raises:
        VersionError: in one line, with the releases that there may be.
    """
    if not OLDEST <= release(version) <= NEWEST:
        oldest, newest, after = (f"{a}.{b}" for a, b in (OLDEST, NEWEST, (NEWEST[0], NEWEST[1] + 1)))
        raise VersionError(
            f"torch {version} is installed, and distcompile is tested on {oldest} to {newest}, whose inside it relies "
            f"on: pip install 'torch>={oldest},<{after}'"
        )


check(torch.__version__)
TORCH = release(torch.__version__)
"""The release that is installed."""

SIZES_ARE_READ_WITH_ASSERTS = TORCH >= (2, 14)
"""True if code that Inductor generates lacks sizes of its inputs, and fails by their names, unless it asserts them."""

NO_LINE_TABLES = {"aot_inductor.enable_line_tables": False} if TORCH >= (2, 13) else {}
"""The setting that leaves tables of lines out of libraries, where there are such tables."""

COUNTS_LIKE_WHAT_IS_COUNTED = TORCH < (2, 13)
"""True if fake results of ``bincount`` have the type of its operand, unlike real ones."""


def type_of_counts(weights: Tensor | None = None) -> torch.dtype:
    """The type of the results of ``bincount``."""
    if weights is None:
        return torch.int64
    return torch.float32 if weights.dtype == torch.float32 else torch.float64


def tries_of_instructions() -> tuple[str, Callable[[Any, str], Path]]:
    """The method of ``VecISA`` that starts a process to try instructions, and where to note what loaded.

    The place is a function of the instructions and of what the method is given.
    """
    from torch._inductor import codecache, cpu_vec_isa  # takes seconds to import

    if hasattr(cpu_vec_isa.VecISA, "_probe_load"):  # since 2.13
        return "_probe_load", lambda _, library: Path(f"{library}.loads")

    def beside_source(instructions: Any, code: str) -> Path:
        flags = cpu_vec_isa._get_isa_dry_compile_fingerprint(instructions._arch_flags)
        return Path(f"{codecache.write(code, 'cpp', extra=flags)[1]}.loads")

    return "check_build", beside_source


def composites_in_python() -> AbstractContextManager[Any]:
    """Let 2.12 follow operators that consist of others (``matmul``, ``linalg.det``) in torch's own Python forms.

    Its C++ asks for sizes as plain numbers.
    """
    from torch._dispatch.python import enable_python_dispatcher  # a torch that is refused need not have it

    return enable_python_dispatcher() if TORCH < (2, 13) else nullcontext()
