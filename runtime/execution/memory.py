"""The memory that a rank may use: the free memory of its machine, divided among the ranks that run there."""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Free:
    """Free memory as one rank sees it."""

    where: str
    """The machine, or one of its devices."""
    size: int | None
    """Bytes; None if they are not known."""


def free(device: torch.device) -> Free:
    """The free memory of a device of this machine."""
    if device.type == "cpu":
        return Free(socket.gethostname(), available())
    module = torch.get_device_module(device)
    here = f"{socket.gethostname()} {device}"
    if not hasattr(module, "mem_get_info"):
        return Free(here, None)
    kept = module.memory_reserved(device) - module.memory_allocated(device)  # kept by the allocator for later tensors
    return Free(here, module.mem_get_info(device)[0] + kept)


def share(everyone: Sequence[Free | None]) -> int | None:
    """Bytes that every one of these ranks may use, the same for all; None if some rank cannot tell."""
    ranks = Counter(f.where for f in everyone if f is not None)
    sizes = [None if f is None or f.size is None else f.size // ranks[f.where] for f in everyone]
    return None if None in sizes else min(n for n in sizes if n is not None)


def available() -> int | None:
    """Bytes that can be had without swapping, by the kernel and control groups; None if neither tells."""
    lines = (_text(Path("/proc/meminfo")) or "").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    groups = _text(Path("/proc/self/cgroup")) or ""
    return min([*found, *left_in_groups(groups, Path("/sys/fs/cgroup"))], default=None)


def left_in_groups(groups: str, root: Path) -> Iterator[int]:
    """Bytes that are left in control groups (a batch job, a container), as ``/proc/self/cgroup`` lists these."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        limit_file, used_file = _VERSION_1 if controllers else ("memory.max", "memory.current")
        group = top / path.strip("/")
        while group.is_relative_to(top):
            limit, used = _number(group / limit_file), _number(group / used_file)
            if limit is not None and used is not None:
                yield max(0, limit - used + _reclaimable(group / "memory.stat"))
            group = group.parent


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return None


def _number(file: Path) -> int | None:
    text = (_text(file) or "").strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _reclaimable(file: Path) -> int:
    """Bytes of cached files, which are kept only as long as the memory is not needed."""
    fields = dict(line.split() for line in (_text(file) or "").splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
