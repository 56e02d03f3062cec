"""Where tensors are made that no device is said for: those of a model on the user's default device, ours on the host.

    torch.set_default_device("cuda")
    model(graph)       torch.zeros(3) in its forward is on cuda:0, when it is captured as when it is called
    distcompile        row numbers, plans and what else it makes are on the host, as without a default device

Entries of the package leave the user's choice; where they call code of the user, it is in force again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Chosen(threading.local):
    device: torch.device | None = None
    """The user's default device in this thread, while it is not in force."""


_chosen = _Chosen()


@contextmanager
def on_the_host() -> Iterator[None]:
    """Make tensors on the host, whatever default device the user chose."""
    device = torch.get_default_device()
    if device.type == "cpu":
        yield
        return
    before, _chosen.device = _chosen.device, device
    try:
        with torch.device("cpu"):
            yield
    finally:
        _chosen.device = before


@contextmanager
def as_the_user_has_it() -> Iterator[None]:
    """Make tensors on the user's default device again: for code of the user."""
    if _chosen.device is None:
        yield
        return
    with torch.device(_chosen.device):
        yield
