"""Launch programs on CUDA devices, on the stream that PyTorch uses there."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cpp import Program
from .nvrtc import binary
from .target import THREADS

MOST_SHARED_BYTES = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""


class Cuda:
    """Runs a program: a `runtime.execution.launches.Launch`."""

    def __init__(self, program: Program, device: torch.device) -> None:
        """Compile it for a device.

        Raises:
            Unsupported: it cannot be compiled.
        """
        self.program = program
        self._codes: dict[tuple[int, int], bytes] = {}
        self._functions: dict[torch.device, ctypes.c_void_p] = {}
        self._code(device)

    def _code(self, device: torch.device) -> bytes:
        capability = torch.cuda.get_device_capability(device)
        if capability not in self._codes:
            self._codes[capability] = binary(self.program.source, f"sm_{capability[0]}{capability[1]}").code
        return self._codes[capability]

    def __call__(self, words: Sequence[int], blocks: int, there: Tensor) -> None:
        """See `Launch`."""
        arguments = (ctypes.c_int64 * len(words))(*words)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with torch.cuda.device(there.device):
            function, stream = self._function(there.device), torch.cuda.current_stream(there.device).cuda_stream
            sizes = (ctypes.c_uint(n) for n in (blocks, 1, 1, THREADS, 1, 1, self.program.scratch))
            _check(_driver().cuLaunchKernel(function, *sizes, ctypes.c_void_p(stream), pointers, None))

    def _function(self, device: torch.device) -> ctypes.c_void_p:
        if device not in self._functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            torch.cuda.current_stream(device).synchronize()  # the device is set up by now
            _check(_driver().cuModuleLoadData(ctypes.byref(module), self._code(device)))
            _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, b"run"))
            _check(_driver().cuFuncSetAttribute(function, MOST_SHARED_BYTES, self.program.scratch))
            self._functions[device] = function
        return self._functions[device]


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {(text.value or b'error').decode()} ({result})")
