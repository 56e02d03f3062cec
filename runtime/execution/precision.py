"""Autocast: a call under ``torch.autocast`` is another program, in which every cast is an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ...ir import Precision

_DEVICES = ("cpu", "cuda", "xpu", "mps")


def precision() -> Precision:
    """The autocast settings of this moment; empty if it is off."""
    return tuple((d, str(torch.get_autocast_dtype(d))) for d in _DEVICES if torch.is_autocast_enabled(d))


@contextmanager
def as_written() -> Iterator[None]:
    """Run the operators of a captured program as they are: its casts were captured, too."""
    with ExitStack() as stack:
        for device, _ in precision():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def no_casts_kept() -> Iterator[None]:
    """Let autocast keep no casts of weights: casts made while tracing are of no use outside of it."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
