"""Programs for a GPU, run by a thread of the host: what they mean is tested without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .....runtime.execution.launches import Launch
from .. import library
from ..cpp import Program

STACK = 2**18
"""Bytes of stack of each emulated thread."""


class DivergentThreads(Exception):  # noqa: N818  a finding of a test
    """Some threads of a block meet where others have ended, which would hang on a GPU."""


def emulated(program: Program, descending: bool = False) -> Launch:
    """Run a program on tensors of the host, thread by thread, in ascending or descending order.

    Raises:
        DivergentThreads: see there.
    """
    header = Path(__file__).with_name("emulated.h").read_text()
    sizes = f"#define EMULATED\n#define SHARED {program.scratch}\n#define STACK {STACK}\n"
    run = library.loaded(sizes + program.source.replace('#include "emulated.h"', header)).launch
    run.restype = ctypes.c_bool

    def launch(words: Sequence[int], blocks: int, _: Tensor) -> None:
        if not run((ctypes.c_int64 * len(words))(*words), ctypes.c_int(blocks), ctypes.c_bool(descending)):
            raise DivergentThreads("threads of a block do not meet at the same places")

    return launch
