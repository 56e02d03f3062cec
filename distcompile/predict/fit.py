"""Choose the way to run a graph within the memory of its ranks: values that do not fit are computed again instead.

Where no way fits, or memory runs out after all, errors say what was predicted and what to do.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch

from ..errors import InputError, OutOfMemory
from ..ir import Runnable, Tiled
from ..ir.tree import device_of
from ..passes import run, scheduling
from ..passes.schedule.tile import HOLD
from ..runtime.division.plan import Division, Tally
from ..runtime.execution.memory import free, share
from ..runtime.world import World
from .by_rank import needs
from .in_step import pays

CHEAPER = (HOLD / 4, HOLD / 2)
"""The cost of memory, see `passes.tile`, if a user says how much may be used: what is held is not computed again."""

DEARER = (4 * HOLD, 64 * HOLD)
"""The cost of memory if there is too little of it."""

Tiling = tuple[float, bool]
"""The cost of memory, and whether groups of regions run in step: the arguments of `passes.scheduling`."""

WORTHWHILE = 2.0
"""Seconds of evaluations after which kernels are made for those to come."""

SPARED = 0.2
"""The share of free memory that is left to what no prediction knows: fragments, results, the rest of a script."""


class Fit:
    """Chooses among the tilings of one program."""

    def __init__(
        self,
        program: Tiled,
        memory: int | None,
        lowered: Callable[[Tiled], Runnable],
        without: Collection[str] = (),
        faster: Callable[[Tiled], Runnable] | None = None,
        alone: bool = False,
    ) -> None:
        """
        Args:
            program: a tiled program.
            memory: bytes that a rank may use; None for what is free: of that, only as much is used as saves much work.
            lowered: makes a tiling ready to run.
            without: names of passes to leave out when it is tiled once more.
            faster: makes a faster form of a tiling, beside other work, once evaluations have taken a while.
            alone: one rank is expected. Then groups of regions run in step, if that pays.
        """
        self.program, self.memory = program, memory
        self._lowered, self._without = lowered, without
        self._tilings: dict[Tiling, Tiled] = {(HOLD, False): program}
        self._runnable: dict[Tiling, Runnable] = {}
        self._faster = faster
        self._making: dict[Tiling, _Making] = {}
        self._running: Tiling = (HOLD, alone and self._pays)
        self._seconds = 0.0

    def __call__(self, sizes: dict[str, int], division: Division | Tally, free: int | None) -> Runnable:
        """The program to run for a division, the same on every rank.

        Args:
            sizes: rows of every space.
            division: of the rows among the ranks.
            free: bytes that are free for each rank; None if that is not known.

        Raises:
            InputError: no tiling fits into the memory.
        """
        tiling, need = self.choose(sizes, division, free)
        if self.memory is not None and need > self.memory:
            raise InputError(_refusal(need, self.memory, f"memory={self.memory} ", ", or raise memory=", division))
        if self.memory is None and free is not None and need > free:
            raise InputError(_refusal(need, free, "what is free there ", ", or a machine with more memory", division))
        return self.runnable(tiling)

    def choose(self, sizes: dict[str, int], division: Division | Tally, free: int | None) -> tuple[Tiling, int]:
        """The first tiling that fits, else that which needs least, and the bytes it needs."""
        limit = self.memory
        if limit is None and free is not None:
            limit = int((1 - SPARED) * free)
        in_step = division.parts == 1 and self._pays
        holds = (*(CHEAPER if self.memory is not None else ()), HOLD, *DEARER)
        tilings: list[Tiling] = [(hold, in_step) for hold in holds]
        if division.parts == 1 and not in_step:  # it needs less memory in any case
            tilings += [(hold, True) for hold in holds]
        best, least = (HOLD, in_step), math.inf
        for tiling in tilings:
            need = max(needs(self.tiling(tiling), sizes, division))
            if need < least:
                best, least = tiling, need
            if limit is None or least <= limit:
                break
        return best, int(least)

    @functools.cached_property
    def _pays(self) -> bool:
        """True if one rank alone runs groups of regions in step by choice: they are for the caches of a processor."""
        return device_of(self.program.captured.leaves).type == "cpu" and pays(self.tiling((HOLD, True)))

    def tiling(self, which: Tiling) -> Tiled:
        """The program in a tiling."""
        if which not in self._tilings:
            self._tilings[which] = run(self.program, (scheduling(*which),), without=self._without)
        return self._tilings[which]

    def runnable(self, which: Tiling | None = None) -> Runnable:
        """A tiling in the form in which it runs; by default the one that a graph is expected to need."""
        which = self._running = which or self._running
        if which not in self._runnable:
            self._runnable[which] = self._lowered(self.tiling(which))
        return self._runnable[which]

    def took(self, seconds: float) -> None:
        """An evaluation took so long. When all have taken long enough, a faster form is made of what runs."""
        self._seconds += seconds
        if self._faster is not None and self._seconds > WORTHWHILE and self._running not in self._making:
            self._making[self._running] = _Making(self._faster, self.tiling(self._running))

    @property
    def is_faster_ready(self) -> bool:
        """True if what runs has a faster form by now that does not run yet."""
        making = self._making.get(self._running)
        return making is not None and making.made is not None and making.made is not self._runnable[self._running]

    def switch(self) -> Runnable:
        """Take the faster form of what runs from now on. Ranks do so together."""
        made = self._making[self._running].made
        assert made is not None
        self._runnable[self._running] = made
        return made


class _Making:
    """Something that is made in a thread of its own."""

    def __init__(self, make: Callable[[Tiled], Runnable], program: Tiled) -> None:
        self.made: Runnable | None = None
        self._make, self._program = make, program
        self.thread = threading.Thread(target=self._run, daemon=True, name="kernels")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.made = self._make(self._program)
        except Exception as error:
            warnings.warn(f"No kernels were made, so operators go on one by one: {error}", stacklevel=1)


def _refusal(need: int, limit: int, what: str, otherwise: str, division: Division | Tally) -> str:
    return (
        f"This graph needs about {need / 1e9:.2f} GB on the fullest of {division.parts} ranks, more than {what}"
        f"({limit / 1e9:.2f} GB), storing as little as possible. Use {-(-need // max(limit, 1)) * division.parts} "
        f"ranks or more{otherwise}."
    )


@contextmanager
def memory_explained(world: World, predicted: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Say what to do if an evaluation runs out of memory.

    Args:
        world: the ranks that execute.
        predicted: called for the bytes that each rank was expected to need.

    Raises:
        OutOfMemory: it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(_memory_of(world, predicted())) from error


def _memory_of(world: World, predicted: Sequence[int]) -> str:
    """The message for an evaluation that ran out of memory: its predicted need, and what to do."""
    mine = getattr(world, "rank", None)
    who = f"Rank {mine} of {world.size}" if mine is not None else "A rank"
    need, most = predicted[mine] if mine is not None else max(predicted), max(predicted)
    return (
        f"{who} ran out of memory: its share of this graph needs about {need / 1e9:.2f} GB beside parameters and "
        f"the graph itself. Use more ranks, or machines with more memory. memory={most} accepts this graph "
        "as it is; set it to what a rank really has, and graphs that need more store less, or are refused before "
        "they start."
    )


def _is_out_of_memory(error: Exception) -> bool:
    """True if an error is one of the several that Python and torch raise if there is not enough memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_here(world: World, device: torch.device) -> int | None:
    """Bytes free for each rank; assumes that all machines have as much free, and as many ranks, as this one."""
    if world.devices is not None:
        return share([free(d) for d in world.devices])
    ranks = world.size if world.virtual else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return share([free(device)] * ranks)
