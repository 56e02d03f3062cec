"""The time of a step on ranks that are not there: a model of local work, messages and what every rank does whole.

    step = whole graph on every rank  +  slowest rank's operators  +  halo exchanges  +  sums and results
           neighbours, graph, checks     launches, bytes, flops       slowest rank of each

Ranks wait for each other at each exchange, so each costs what it costs the rank that it costs most; a message costs a
latency and its bytes. What interior rows hide of it (see `passes.overlap`) is not taken off: a step may be faster than
predicted. Everything here is arithmetic on counts; `calibrate` measures.

Sources: Valiant, Commun. ACM 33, 103 (1990) for bulk-synchronous steps; Hockney, Parallel Comput. 20, 389 (1994) for
latency and bandwidth; Thakur, Rabenseifner & Gropp, Int. J. High Perform. Comput. Appl. 19, 49 (2005) for sums over
ranks, which are scattered and gathered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .account import Collective, Work
from .rank_counts import RankCounts


@dataclasses.dataclass(frozen=True)
class Device:
    """The speed of a rank's processor and network."""

    name: str
    per_operator: float
    """Seconds of a call of an operator, in addition to `curve`."""
    curve: tuple[tuple[float, float], ...]
    """(bytes that operators read and write, seconds that they take), ascending. Above the last point, a byte takes as
    long as at that point. Below the first one, the line through the first two points holds."""
    flops_per_byte: float
    """Floating-point operations of matrix products that take as long as one byte."""
    latency: float
    """Seconds of a message."""
    per_sent_byte: float
    """Seconds of a byte of a message."""
    basis: str
    """The source of these figures."""

    def seconds(self, moved: np.ndarray) -> np.ndarray:
        """Seconds that operators take for numbers of bytes."""
        bytes_, seconds = np.array(self.curve).T
        found = np.interp(moved, bytes_, seconds)
        found = np.where(moved > bytes_[-1], seconds[-1] * moved / bytes_[-1], found)
        if len(bytes_) > 1:
            slope = (seconds[1] - seconds[0]) / (bytes_[1] - bytes_[0])
            found = np.where(moved < bytes_[0], seconds[0] - slope * (bytes_[0] - moved), found)
        return np.maximum(found, 0.0)


EFFICIENCY = 0.6
"""The share of published bandwidth and floating-point rates that operators and messages are taken to reach."""


def _published(name: str, memory: float, flops: float, network: float) -> Device:
    """A device by its data sheet: memory in bytes/s, single-precision operations/s, network in bytes/s a direction."""
    return Device(
        name,
        per_operator=1e-5,
        curve=((0.0, 0.0), (EFFICIENCY * memory, 1.0)),
        flops_per_byte=flops / memory,
        latency=1e-5,
        per_sent_byte=1 / (EFFICIENCY * network),
        basis=(
            f"published figures, not measured: {memory / 1e12:.2f} TB/s of memory, {flops / 1e12:.1f} Tflop/s float32, "
            f"{network / 1e9:.0f} GB/s of network a rank, {EFFICIENCY:.0%} of each reached; 10 us a kernel, 10 us a "
            "message"
        ),
    )


DEVICES = {
    "a100": _published("a100", 2.039e12, 19.5e12, 25e9),
    "h100": _published("h100", 3.35e12, 67e12, 50e9),
}
"""NVIDIA A100 80GB SXM with HDR InfiniBand and H100 SXM with NDR, from the data sheets of 2021 and 2023."""


@dataclasses.dataclass(frozen=True)
class Host:
    """Seconds that every rank spends on the whole graph in each step."""

    graph: float
    """Neighbour list and graph object, by the calculator."""
    checks: float
    """Checks and index program, and the digest by which ranks compare their graphs."""
    division: float
    """The plan of reads and messages, with atoms that stay on their ranks; zero on one rank."""
    own_rows: float = 0.0
    """Where ranks make their rows themselves: all of this, for the rows of the fullest rank."""

    @property
    def total(self) -> float:
        """Seconds of what grows with the whole system."""
        return self.graph + self.checks + self.division


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The data that each rank receives and sends in an evaluation.  # Shape of each: [n_ranks]"""

    halo: np.ndarray
    """Bytes received in halo exchanges and sent in reductions: halo rows times their width."""
    results: np.ndarray
    """Bytes received to put results together."""
    messages: np.ndarray
    """Messages sent in exchanges and reductions, empty ones not counted, and for results."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a step on the slowest rank."""

    host: float
    local: float
    halo: float
    whole: float
    """Sums over ranks, and results put together."""
    own_rows: float = 0.0
    """The rows of the graph object that a rank makes itself."""

    @property
    def total(self) -> float:
        return self.host + self.own_rows + self.evaluation

    @property
    def evaluation(self) -> float:
        """The step without the graph object."""
        return self.local + self.halo + self.whole


def traffic(work: Work, ranks: RankCounts) -> Traffic:
    """Bytes and messages of every rank."""
    halo, messages = np.zeros(ranks.parts, np.int64), np.zeros(ranks.parts, np.int64)
    for message in work.messages:
        halo += sum(c.row_bytes * ranks.spaces[c.space].halo for c in message)
        messages += _sends(message, ranks).sum(1)
    results = sum(_gathered(ranks, space, ranks.parts) * size for space, size in work.results)
    messages += (ranks.parts - 1) * len(work.results)
    return Traffic(halo, np.full(ranks.parts, results), messages)


def step(device: Device, work: Work, ranks: RankCounts, host: Host) -> Step:
    """The predicted time of a step.

    Args:
        device: what a rank runs on.
        work: see `account.work`.
        ranks: what each rank holds.
        host: what every rank does whole.
    """
    everywhere = ranks.whole.moved + ranks.whole.flops / device.flops_per_byte
    bytes_ = moved(work, ranks.rows, device.flops_per_byte) + everywhere
    local = device.per_operator * work.operators + device.seconds(bytes_)
    halo = 0.0
    for message in work.messages:
        sends, spaces = _sends(message, ranks), [ranks.spaces[c.space] for c in message]
        size = sum(c.row_bytes * np.maximum(s.halo, s.sent) for c, s in zip(message, spaces, strict=True))
        peers = np.maximum(sends.sum(0), sends.sum(1))
        halo += float((peers * device.latency + size * device.per_sent_byte).max())
    return Step(host.total, float(local.max()), halo, _whole(device, work, ranks, ranks.parts), host.own_rows)


def _whole(device: Device, work: Work, ranks: RankCounts, parts: int) -> float:
    """Seconds of sums over ranks, and of results put together, on as many ranks as full as those of `ranks`."""
    if parts == 1:
        return 0.0
    sizes = [0, *(c.row_bytes for c in work.sums)]  # first, ranks compare their graphs
    total = sum(
        2 * float(np.log2(parts)) * device.latency + 2 * (parts - 1) / parts * size * device.per_sent_byte
        for size in sizes
    )
    for name, size in work.results:
        total += (parts - 1) * device.latency
        total += _gathered(ranks, name, parts) * size * device.per_sent_byte
    return total


def moved(work: Work, rows: Mapping[str, np.ndarray], flops_per_byte: float) -> np.ndarray:
    """Bytes that operators move for numbers of rows by space.

    Operations of products count as the bytes of the same time.
    """
    each = [n * (work.rows[s].moved + work.rows[s].flops / flops_per_byte) for s, n in rows.items() if s in work.rows]
    return np.sum(each, axis=0)


def weak(device: Device, work: Work, ranks: RankCounts, host: Host, parts: Sequence[int]) -> list[Step]:
    """Steps on other numbers of ranks, each with as much as the ranks of `ranks` have.

    What every rank does whole grows with the system. One rank has no neighbours.
    """
    here = step(device, work, ranks, host)
    return [
        Step(
            here.host * n / ranks.parts, here.local, here.halo if n > 1 else 0.0,
            _whole(device, work, ranks, n), here.own_rows,
        )
        for n in parts
    ]  # fmt: skip


def _sends(message: Sequence[Collective], ranks: RankCounts) -> np.ndarray:
    """True where one rank has something to send to another.  # Shape: [sender, receiver], bool"""
    reads = [(c.to_owners, ranks.spaces[c.space].reads) for c in message]
    return np.logical_or.reduce([r.T if to_owners else r for to_owners, r in reads])


def _gathered(ranks: RankCounts, space: str, parts: int) -> int:
    """Rows that each of so many ranks receives of a result: the rows of the fullest rank, from every rank."""
    return parts * int(ranks.spaces[space].owned.max())
