"""The ranks that execute: virtual ranks in this process, or one rank a process over ``torch.distributed``.

Both give every rank a `Communicator`; the same program runs on either and gives the same answers.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import RankError, in_one_line

T = TypeVar("T")

_active = threading.local()


class Communicator(ABC):
    """The collectives that one rank may call. Every rank must call the same ones in the same order."""

    rank: int
    size: int
    device: torch.device | None = None
    """The device that this rank computes on; None for the device that a graph object is on."""

    @abstractmethod
    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        """Begin an `all_to_all`; return a function that waits for the incoming rows. `rows` must not change before."""

    @abstractmethod
    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        """The ``sum``, ``amax`` or ``amin`` of every rank's `value`."""

    @abstractmethod
    def all_gather_objects(self, value: Any) -> list[Any]:
        """Every rank's small `value`, by rank: what JSON holds, in which tuples may become lists."""

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send ``send[q]`` consecutive rows to rank q; return ``receive[q]`` rows from each rank q, in order."""
        return self.all_to_all_start(rows, send, receive)()

    def all_gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, by rank; rank q has ``counts[q]`` rows."""
        widest = max(counts)
        padded = rows.new_zeros((widest, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        everyone = self.all_to_all(padded.repeat(self.size, *[1] * (rows.dim() - 1)), *[[widest] * self.size] * 2)
        return torch.cat([everyone[q * widest : q * widest + n] for q, n in enumerate(counts)])


class World(ABC):
    """A fixed set of ranks."""

    size: int
    virtual: bool
    """True if several ranks live in this process."""
    devices: tuple[torch.device, ...] | None = None
    """The device of each rank; None if ranks compute on the device that a graph object is on."""

    @abstractmethod
    def run(self, work: Callable[[Communicator], T]) -> list[T]:
        """Call `work` on every rank of this process; return their results."""


def communicator() -> Communicator:
    """The communicator of the rank that is running now."""
    found = getattr(_active, "communicator", None)
    if found is None:
        raise RankError("A collective ran outside of a world: call the compiled model, not its graph_module.")
    return found  # type: ignore[no-any-return]


@contextmanager
def active(comm: Communicator) -> Any:
    """Make `comm` the communicator of the code inside."""
    before = getattr(_active, "communicator", None)
    _active.communicator = comm
    try:
        yield
    finally:
        _active.communicator = before


class LocalWorld(World):
    """`size` virtual ranks in this process, for tests, notebooks and several devices of one process.

    Ranks are threads that run one at a time, in order, from collective to collective: results are reproducible
    and a rank that takes another path than the others is an error instead of a hang. With `devices`, each rank computes
    on a device of its own. Accelerators work while the next rank hands work to another one, so they run side by side;
    processors do not. The model and the graph stay where they are; weights are copied when they change.

    Args:
        size: number of ranks; that of `devices` if these are given.
        devices: the device of each rank: ``["cuda:0", "cuda:1"]``. Ranks on another device than the graph's run
            PyTorch's operators, whatever the lowering.

    Raises:
        ValueError: there is no such device, or another number of them than `size`.
    """

    def __init__(self, size: int | None = None, *, devices: Sequence[str | torch.device] | None = None) -> None:
        if devices is not None:
            self.devices = tuple(_device(d) for d in devices)
            size = len(devices) if size is None else size
            if size != len(devices):
                raise ValueError(f"{size} ranks need {size} devices, not {len(devices)}: leave out the number of ranks")
        self.size = 1 if size is None else size
        if self.size < 1:
            raise ValueError(f"a world needs at least one rank, not {self.size}")
        self.virtual = self.size > 1

    def __repr__(self) -> str:
        return f"LocalWorld({self.size if self.devices is None else f'devices={list(map(str, self.devices))}'})"

    def run(self, work: Callable[[Communicator], T]) -> list[T]:
        lockstep = _Lockstep(self.size)
        results: list[Any] = [None] * self.size
        grad = torch.is_grad_enabled()

        def rank_main(rank: int) -> None:
            try:
                lockstep.wait_for_turn(rank)
                comm = _LocalCommunicator(rank, lockstep, None if self.devices is None else self.devices[rank])
                with active(comm), torch.set_grad_enabled(grad):
                    results[rank] = work(comm)
                lockstep.finish(rank)
            except BaseException as error:
                lockstep.fail(rank, error)

        if self.size == 1:
            rank_main(0)
        else:
            threads = [threading.Thread(target=rank_main, args=(r,), daemon=True) for r in range(self.size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if lockstep.error is not None:
            raise lockstep.error
        return results


class _Aborted(BaseException):
    """Unwinds a virtual rank after another one failed."""


class _Lockstep:
    """Lets virtual ranks run in turn and meet at collectives."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.error: BaseException | None = None
        self._condition = threading.Condition()
        self._turn = 0
        self._slots: list[Any] = [None] * size
        self._results: list[Any] = [None] * size
        self._kinds: list[str] = [""] * size

    def wait_for_turn(self, rank: int) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._turn == rank or self.error is not None)
            if self.error is not None:
                raise _Aborted

    def _pass_on(self, rank: int) -> None:
        self._turn = (rank + 1) % self.size
        self._condition.notify_all()

    def meet(self, rank: int, kind: str, value: Any, combine: Callable[[list[Any]], list[Any]]) -> Any:
        """Hand in `value`; return this rank's part of ``combine(values of all ranks)``."""
        with self._condition:
            self._slots[rank], self._kinds[rank] = value, kind
            if rank == self.size - 1:
                if len(set(self._kinds)) > 1:
                    raise RankError(f"Ranks meet at different collectives: {', '.join(self._kinds)}.")
                self._results = combine(self._slots)
                self._slots = [None] * self.size
            self._pass_on(rank)
        self.wait_for_turn(rank)
        result, self._results[rank] = self._results[rank], None
        return result

    def finish(self, rank: int) -> None:
        with self._condition:
            self._kinds[rank] = "the end"
            if rank == self.size - 1 and len(set(self._kinds)) > 1:
                raise RankError(f"Ranks meet at different collectives: {', '.join(self._kinds)}.")
            self._pass_on(rank)

    def fail(self, rank: int, error: BaseException) -> None:
        with self._condition:
            if self.error is None and not isinstance(error, _Aborted):
                self.error = error
            self._condition.notify_all()


class _LocalCommunicator(Communicator):
    def __init__(self, rank: int, lockstep: _Lockstep, device: torch.device | None = None) -> None:
        self.rank, self.size, self._lockstep, self.device = rank, lockstep.size, lockstep, device

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        def combine(slots: list[tuple[Tensor, ...]]) -> list[Tensor]:
            to = [own[0].device for own in slots]
            return [
                torch.cat([slots[q][r].to(to[r], non_blocking=True) for q in range(self.size)])
                for r in range(self.size)
            ]

        received: Tensor = self._lockstep.meet(self.rank, "all_to_all", rows.split(list(send)), combine)
        return lambda: received  # ranks take turns, so all rows are there at once

    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        def combine(slots: list[Tensor]) -> list[Tensor]:
            here = [value.to(slots[0].device, non_blocking=True) for value in slots]
            total = getattr(torch.stack(here), reduction)(0)
            return [total.to(value.device, non_blocking=True, copy=True) for value in slots]

        return self._lockstep.meet(self.rank, f"all_reduce {reduction}", value, combine)  # type: ignore[no-any-return]

    def all_gather_objects(self, value: Any) -> list[Any]:
        return self._lockstep.meet(self.rank, "all_gather", value, lambda slots: [list(slots) for _ in slots])  # type: ignore[no-any-return]


def _device(name: str | torch.device) -> torch.device:
    """A device of this machine, with its number."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(name)!r} cannot be used on this machine: {in_one_line(error)}") from error


_using: dict[dist.ProcessGroup | None, threading.RLock] = {}
"""A lock for each group: messages of two threads at once would be taken for each other."""


class ProcessGroupWorld(World):
    """One rank a process over ``torch.distributed`` (gloo, nccl, mpi), as torchrun or SLURM start them.

    Args:
        group: a process group; the default group if None. Initialise it before
            (``torch.distributed.init_process_group("gloo")``).
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise RankError(
                "torch.distributed is not initialised: start the script with torchrun and call "
                'torch.distributed.init_process_group("gloo") (or "nccl") first.'
            )
        self._group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.virtual = False

    def __repr__(self) -> str:
        return f"ProcessGroupWorld(rank={self.rank}, size={self.size})"

    def __deepcopy__(self, memo: Any) -> ProcessGroupWorld:
        return self

    def __reduce__(self) -> tuple[Callable[[], World], tuple[()]]:
        """A pickled world becomes the ranks that exist in the process which loads it."""
        return default_world, ()

    def run(self, work: Callable[[Communicator], T]) -> list[T]:
        comm = _ProcessGroupCommunicator(self.rank, self.size, self._group)
        with _using.setdefault(self._group, threading.RLock()), active(comm):
            return [work(comm)]


class _ProcessGroupCommunicator(Communicator):
    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
        self.rank, self.size, self._group = rank, size, group

    def _carried(self, tensor: Tensor) -> Tensor:
        """A tensor where the backend takes it: nccl takes those of an accelerator only."""
        if tensor.device.type in dist.distributed_c10d._device_capability(self._group):
            return tensor
        return tensor.to(dist.distributed_c10d._get_object_coll_device(self._group))

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        sent = self._carried(rows).contiguous()
        received = sent.new_empty((sum(receive), *rows.shape[1:]))
        given = list(receive), list(send)
        under_way = dist.all_to_all_single(received, sent, *given, group=self._group, async_op=True)

        def arrived() -> Tensor:
            assert sent is not None  # kept until here: it is being sent
            under_way.wait()
            return received.to(rows.device)

        return arrived

    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        total = self._carried(value.clone())
        how = {"sum": dist.ReduceOp.SUM, "amax": dist.ReduceOp.MAX, "amin": dist.ReduceOp.MIN}[reduction]
        dist.all_reduce(total, how, group=self._group)
        return total.to(value.device)

    def all_gather_objects(self, value: Any) -> list[Any]:
        # torch's own function would unpickle, and so run, the bytes that come over the network.
        device = dist.distributed_c10d._get_object_coll_device(self._group)
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)], device=device), group=self._group)
        longest = int(max(lengths))
        texts = [text.new_zeros(longest) for _ in lengths]
        dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=self._group)
        return [json.loads(bytes(t[:n].tolist())) for t, n in zip(texts, lengths, strict=True)]


def default_world() -> World:
    """The default process group if there is one, else one rank."""
    return ProcessGroupWorld() if dist.is_initialized() else LocalWorld(1)


def is_first() -> bool:
    """True if this process is the one that prints and writes: rank 0, or the only process.

    Every rank runs the same script, and energies and forces are whole on all of them:

        energy = atoms.get_potential_energy()  # on every rank
        if distcompile.is_first():
            print(energy)
    """
    return not dist.is_initialized() or dist.get_rank() == 0
