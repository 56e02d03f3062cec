"""``distcompile doctor``: the equipment of this machine, and the packages of models that work on it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path

from ..calculators.aliases import PACKAGES

Rows = list[tuple[str, str]]


def machine() -> Rows:
    """Versions, threads, devices and the backends of communication."""
    import torch
    import torch.distributed as dist

    from .. import __version__
    from ..passes.lower.components.library import compiler

    found = [("distcompile", __version__), ("Python", platform.python_version()), ("torch", torch.__version__)]
    found += [(name, _version(name)) for name in ("ase", "numpy", "pymetis")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found.append(("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads a rank"))
    found.append(("memory", f"{memory / 1e9:.1f} GB"))
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found.append(("devices", ", ".join(devices) or "CPU only"))
    available = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    found += [(name, "available" if there else "not in this torch") for name, there in available.items()]
    found.append(("C++ compiler", compiler() or "none: operators run one by one, at a fraction of the speed"))
    return found


def models() -> Rows:
    """Every package of models: its version, and if it can be imported."""
    return [(package, _works(package, module)) for package, module in PACKAGES.items()]


def mistakes() -> Rows:
    """What is set up so that it makes runs slow or wrong, and what to do about it."""
    import torch

    from ..passes.lower.components.library import compiler

    found = []
    ranks, threads = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.get_num_threads()
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if ranks * threads > processors:
        cure = f"export OMP_NUM_THREADS={processors // ranks}" if ranks <= processors else f"start {processors} ranks"
        said = f"{ranks} ranks of {threads} threads share {processors} processors, and wait for each other: {cure}"
        found.append(("threads", said))
    if compiler() is None:
        found.append(("compiler", "there is none, so operators run one by one: install g++"))
    runtimes = openmp_runtimes(Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else "")
    if len(runtimes) > 1:
        said = (
            f"{len(runtimes)} libraries of threads are loaded ({', '.join(runtimes)}), each with threads of its own: "
            "take torch and NumPy from one source, pip or conda"
        )
        found.append(("OpenMP", said))
    return found


def openmp_runtimes(maps: str) -> list[str]:
    """One file of each kind of OpenMP runtime that a process has mapped, as ``/proc/self/maps`` lists these."""
    files = {line.split()[-1] for line in maps.splitlines() if line.split()[-1:] and "/" in line.split()[-1]}
    by_kind: dict[str, str] = {}
    for file in sorted(files):
        name = file.rsplit("/", 1)[-1]
        for kind in ("libgomp", "libiomp", "libomp"):
            if name.startswith((kind + ".", kind + "-", kind + "5")):
                by_kind.setdefault(kind, name)
    return list(by_kind.values())


def _works(package: str, module: str) -> str:
    version = _version(package)
    if version == MISSING:
        return version
    try:
        importlib.import_module(module)
    except Exception as error:  # a package may raise anything
        return (
            f"{version}, cannot be imported: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    return f"{version}, works"


MISSING = "not installed"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
