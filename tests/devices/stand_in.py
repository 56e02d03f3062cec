"""The device ``sim``, which stands for an accelerator; see stand_in.cpp."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from processes import run_ranks

from distcompile.ir.tree import flatten


@functools.cache
def stand_in() -> Any:
    """Compile and register the device, once a process. `reads()` counts how often the host asked for values."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("stand_in.cpp")
    name = hashlib.sha256(f"{sys.prefix}{torch.__version__}{source.read_text()}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"distcompile-stand-in-{os.getuid()}-{name}"
    folder.mkdir(exist_ok=True)
    torch.utils.rename_privateuse1_backend("sim")
    module = load("stand_in", [str(source)], build_directory=str(folder), extra_cflags=["-O1"])
    device_module = SimpleNamespace(
        device_count=lambda: 4,
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=module.current,
        set_device=module.use,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )
    torch._register_device_module("sim", device_module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return module


def moved(obj: Any, device: str) -> Any:
    """A copy of a graph object on a device."""
    leaves, tree = flatten(obj)
    return tree.unflatten([leaf.tensor.detach().clone().to(device) for leaf in leaves])


def on_the_device(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a module in a process that has the device; other tests do not see it."""
    (answer,) = run_ranks(1, function, *args, timeout=300.0, team="sim")
    if isinstance(answer, BaseException):
        raise answer
    return answer
