"""Compile on all cores: child processes fill the code generator's cache on disk, from which this process then loads."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, suppress
from typing import Any

import torch

from ..cache import cache_folder


def fill_cache(compilations: Mapping[str, Callable[[], Any]], report: Callable[[int], None]) -> None:
    """Run every compilation that was not run on this machine before, each in one of several child processes.

    A child that fails leaves its work to this process, which meets the same error and can raise it.

    Args:
        compilations: by a key that names what is compiled.
        report: called with the number of compilations done, as they go on.
    """
    if not _may_fork():
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    missing = {key: run for key, run in compilations.items() if not (folder / key).exists()}
    children = min(len(missing), len(os.sched_getaffinity(0)))
    if children < 2:
        return
    importlib.import_module("torch._inductor.compile_fx")  # takes a second: once, for all children
    context = multiprocessing.get_context("fork")
    keys = list(missing)
    taken, done = context.Value("i", 0), context.Value("i", 0)

    def child() -> None:
        import torch._inductor.config as inductor_config

        torch.set_num_threads(1)  # the threads of the parent do not exist here
        with inductor_config.patch(compile_threads=1):
            while True:
                with taken.get_lock():
                    number, taken.value = taken.value, taken.value + 1
                if number >= len(missing):
                    return
                key = keys[number]
                missing[key]()
                (folder / key).touch()
                with done.get_lock():
                    done.value += 1

    processes = [context.Process(target=_quietly, args=(child,), daemon=True) for _ in range(children)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        report(len(compilations) - len(missing) + done.value)
        time.sleep(0.1)


def beside(work: Callable[[], Any]) -> Callable[[], None]:
    """Start work that leaves its results on disk in a child process; return a function that waits for its end."""
    if not _may_fork():
        return lambda: None
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(work,), daemon=True)
    process.start()
    return process.join


def _may_fork() -> bool:
    if sys.platform != "linux":  # elsewhere, libraries do not survive a fork
        return False
    if torch.cuda.is_initialized():  # a process that uses a GPU cannot be forked
        return False
    return not multiprocessing.current_process().daemon  # a worker of a pool may have no children


def _quietly(work: Callable[[], None]) -> None:
    """Run a child's work in silence: an error that occurs here occurs in the parent again."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), suppress(BaseException):
        os.dup2(nowhere.fileno(), 2)  # for compilers; sys.stderr may be another stream, as in notebooks
        work()
