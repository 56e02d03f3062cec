"""Plans for ranks that are not there: counts against real runs, the model of a step by hand, the command line."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import springs
import structures
import systems
import torch
import torch.distributed as dist
import toys
from ase.io import write
from runs import listening
from torch import Tensor
from typer.testing import CliRunner

import distcompile
from distcompile import LocalWorld, ProcessGroupWorld
from distcompile.app.cli import app
from distcompile.app.device_files import read_device, write_device
from distcompile.app.forecast import EXAMPLE, MARGIN, few, forecast
from distcompile.calculators.calculator import statistics
from distcompile.predict.account import Collective, RowWork, Work, work
from distcompile.predict.calibrate import network, this_machine, timed
from distcompile.predict.planning import Device, Host, step, traffic, weak
from distcompile.predict.rank_counts import RankCounts, SpaceCounts, rank_counts
from distcompile.runtime.division.partition import Partition
from distcompile.runtime.execution import executor as executors
from distcompile.runtime.operators import buckets, messages
from distcompile.runtime.world import Communicator, communicator


def test_messages_are_timed_where_no_other_machine_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ranks that send them listen on the loopback interface, whatever interface others are told to use."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("sockets are found by /proc")
    others = [name for _, name in socket.if_nameindex() if not name.startswith("lo")]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", ",".join(others))
    seen: list[set[str]] = []
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: (seen.append(set(listening([os.getpid()]))), clock())[1])
    latency, per_byte = network()
    assert 0 < latency < 1
    assert 0 < per_byte < 1e-6
    assert seen[0] == {"127.0.0.1"}


@pytest.fixture(scope="module")
def model() -> distcompile.DistributedModel:
    graph = toys.random_graph(14, 1, angles=True)
    return distcompile.compile(toys.ThreeBody().eval(), graph, validate=False)


class Counting(Communicator):
    """Counts what the communicator of a rank receives, and the messages that are not empty."""

    def __init__(self, real: Communicator, received: Counter[int], messages: Counter[int]) -> None:
        self.real, self.rank, self.size = real, real.rank, real.size
        self.received, self.messages = received, messages

    def all_to_all_start(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        arrived = self.real.all_to_all_start(rows, send, receive)
        self.received[self.rank] += sum(receive) * math.prod(rows.shape[1:]) * rows.element_size()
        self.messages[self.rank] += sum(n > 0 for rank, n in enumerate(send) if rank != self.rank)
        return arrived

    def all_reduce(self, value: Tensor, reduction: str = "sum") -> Tensor:
        return self.real.all_reduce(value, reduction)

    def all_gather_objects(self, value: Any) -> list[Any]:
        return self.real.all_gather_objects(value)


@pytest.mark.parametrize("parts", [2, 3])
def test_traffic_is_that_of_a_run(
    model: distcompile.DistributedModel, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of exchanges and of results, and messages, on each rank; memory is that of the account."""
    graph = toys.random_graph(40, 2, angles=True)
    on_ranks = model.on(LocalWorld(parts))
    executor, prepared = on_ranks.prepared(graph)
    held = rank_counts(executor.program, prepared.sizes, executor.divide(prepared, parts))
    found = traffic(work(executor.program), held)
    stats = on_ranks.stats(graph)
    assert found.halo.tolist() == [row["bytes"] for row in stats]
    assert held.memory.tolist() == [row["peak_memory"] for row in stats]
    for name, space in held.spaces.items():
        assert space.owned.tolist() == [row["owned"][name] for row in stats]
        assert space.halo.tolist() == [row["halo"][name] for row in stats]
    counts = {module: (Counter[int](), Counter[int]()) for module in (messages, executors)}
    for module, given in (*counts.items(), (buckets, counts[messages])):
        monkeypatch.setattr(module, "communicator", lambda given=given: Counting(communicator(), *given))
    on_ranks(graph)
    (halo_bytes, halo_messages), (result_bytes, result_messages) = counts[messages], counts[executors]
    assert (
        sum(found.halo) == sum(halo_bytes.values()) > 0
    )  # reductions are received by others than they are counted for
    assert found.results.tolist() == [result_bytes[rank] for rank in range(parts)]
    assert found.messages.tolist() == [halo_messages[rank] + result_messages[rank] for rank in range(parts)]


@pytest.fixture
def fake_group() -> Iterator[int]:
    """A process group of 256 ranks of which this process is one, and the others are nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rank = 100
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=256)
    yield rank
    dist.destroy_process_group()


def test_a_rank_of_256_runs_its_program_in_the_shapes_of_the_plan(fake_group: int) -> None:
    """On torch's fake process group: the process group's communicator, collectives that bring no data."""
    graph = _graph(systems.liquid(5000, 3.5))
    model = distcompile.compile(toys.Gnn().eval(), _graph(systems.liquid(40, 3.5)), world=LocalWorld(1), validate=False)
    executor, prepared = model.prepared(graph)
    division = executor.divide(prepared, 256)
    held = rank_counts(executor.program, prepared.sizes, division)
    found = traffic(work(executor.program), held)
    received, messages = Counter[int](), Counter[int]()
    (real,) = ProcessGroupWorld().run(lambda comm: comm)
    counting = Counting(real, received, messages)
    results = executor.run_rank(counting, prepared, executor.laid_out(prepared, division))
    expected = toys.Gnn()(_graph(systems.liquid(40, 3.5)))
    assert {r.shape for r in results} == {
        torch.Size([5000, *v.shape[1:]]) if v.dim() and len(v) == 40 else v.shape for v in expected.values()
    }
    exchanged = sum(
        c.row_bytes * int((space.sent if c.kind.endswith("reduce") else space.halo)[fake_group])
        for message in work(executor.program).messages
        for c in message
        for space in [held.spaces[c.space]]
    )
    assert exchanged > 0
    assert received[fake_group] == exchanged + found.results[fake_group]
    assert messages[fake_group] == found.messages[fake_group]


def _graph(system: systems.System) -> toys.Graph:
    """A liquid as the toys take it."""
    n = len(system.positions)
    side = (n / 0.1) ** (1 / 3)
    apart = system.positions[system.pairs[0]] - system.positions[system.pairs[1]]
    return {
        "positions": system.positions,
        "species": torch.arange(n) % toys.N_SPECIES,
        "edge_index": system.pairs,
        "shifts": -torch.round(apart / side),
        "cell": torch.eye(3, dtype=torch.float64) * side,
    }


DEVICE = Device("toy", 1e-6, ((0.0, 0.0), (1e9, 1.0)), 1e3, 1e-3, 1e-8, "made up")
WORK = Work(
    {"atoms": RowWork(100.0, 0.0), "edges": RowWork(1000.0, 5e5)},
    50,
    ((Collective("halo_exchange", "atoms", 40, ""),), (Collective("halo_reduce", "atoms", 8, ""),)),
    (Collective("all_reduce", "", 16, ""),),
    (("atoms", 12),),
)  # fmt: skip
HOST = Host(graph=0.5, checks=0.25, division=0.125)


def _counts(parts: int, owned: int, halo_rows: int) -> RankCounts:
    """Ranks that all have the same, and exchange with one other."""
    same = lambda n: np.full(parts, n)  # noqa: E731
    others = np.roll(np.eye(parts, dtype=bool), 1, 0)
    atoms = SpaceCounts(same(owned), same(halo_rows), same(halo_rows), others & (halo_rows > 0))
    edges = SpaceCounts(same(10 * owned), same(0), same(0), np.zeros_like(others))
    partition = Partition(torch.zeros(0), "given", 0.0, 1.0, 1.0)
    return RankCounts(parts, partition, {"atoms": atoms, "edges": edges}, same(0))


def test_a_step_by_hand() -> None:
    """Four ranks of 100 atoms and 1000 edges, 30 halo atoms from one other rank."""
    found = step(DEVICE, WORK, _counts(4, 100, 30), HOST)
    assert found.host == 0.875
    assert found.local == pytest.approx(50 * 1e-6 + (100 * 100 + 1000 * 1000) * 1e-9 + 1000 * 5e5 / 1e3 * 1e-9)
    assert found.halo == pytest.approx(2 * 1e-3 + 30 * 48 * 1e-8)
    compare, reduce = 2 * 2 * 1e-3, 2 * 2 * 1e-3 + 2 * 3 / 4 * 16 * 1e-8
    gather = 3 * 1e-3 + 400 * 12 * 1e-8
    assert found.whole == pytest.approx(compare + reduce + gather)
    assert found.total == pytest.approx(found.host + found.local + found.halo + found.whole)


def test_what_leaves_together_is_one_message() -> None:
    """An exchange with one rank and a reduction with another, apart and in one bucket, which has two peers."""
    (exchange,), (reduction,) = WORK.messages
    together = dataclasses.replace(WORK, messages=((exchange, dataclasses.replace(reduction, space="edges")),))
    apart = dataclasses.replace(WORK, messages=tuple((c,) for c in together.messages[0]))
    held = _counts(4, 100, 30)
    edges = dataclasses.replace(held.spaces["edges"], halo=np.full(4, 5), sent=np.full(4, 5))
    for turns, peers in ((1, 2), (3, 1)):  # a reduction goes the other way: to who is one further, three for four
        edges = dataclasses.replace(edges, reads=np.roll(np.eye(4, dtype=bool), turns, 0))
        ranks = dataclasses.replace(held, spaces={**held.spaces, "edges": edges})
        sent = 3 + peers  # three for the results
        assert traffic(together, ranks).messages.tolist() == [sent] * 4
        assert traffic(apart, ranks).messages.tolist() == [5] * 4
        assert traffic(together, ranks).halo.tolist() == traffic(apart, ranks).halo.tolist() == [30 * 40 + 5 * 8] * 4
        saved = step(DEVICE, apart, ranks, HOST).halo - step(DEVICE, together, ranks, HOST).halo
        assert saved == pytest.approx((2 - peers) * DEVICE.latency)


def test_the_slowest_rank_counts() -> None:
    even, uneven = _counts(2, 100, 10), _counts(2, 100, 10)
    owned = np.array([50, 150])
    uneven = dataclasses.replace(
        uneven, spaces={**uneven.spaces, "edges": dataclasses.replace(uneven.spaces["edges"], owned=10 * owned)}
    )
    seconds = [step(DEVICE, WORK, s, HOST).local for s in (even, uneven)]
    assert seconds[1] - seconds[0] == pytest.approx(500 * (1000 * 1e-9 + 5e5 / 1e3 * 1e-9))


def test_one_rank_sends_nothing() -> None:
    found = step(DEVICE, WORK, _counts(1, 100, 0), Host(0.5, 0.25, 0.0))
    assert (found.halo, found.whole) == (0.0, 0.0)


def test_weak_scaling_grows_by_what_ranks_do_whole() -> None:
    held = _counts(4, 100, 30)
    here = step(DEVICE, WORK, held, HOST)
    one, same, more = weak(DEVICE, WORK, held, HOST, [1, 4, 8])
    assert one.total == pytest.approx(here.host / 4 + here.local)
    assert same == here
    sums = 2 * 2 * 1e-3 + 2 * (7 / 8 - 3 / 4) * 16 * 1e-8  # one round more for each of two
    results = 4 * 1e-3 + 400 * 12 * 1e-8
    assert more.whole - same.whole == pytest.approx(sums + results)
    assert more.total - same.total == pytest.approx(here.host + sums + results)
    assert more.evaluation == pytest.approx(more.total - 2 * here.host)


def test_seconds_between_and_beyond_what_was_measured() -> None:
    """Lines between measurements, the first line before them, as much for each byte after them."""
    device = dataclasses.replace(DEVICE, curve=((100.0, 2.0), (200.0, 3.0), (400.0, 8.0)))
    assert device.seconds(np.array([0, 50, 100, 150, 300, 400, 800])).tolist() == [1.0, 1.5, 2.0, 2.5, 5.5, 8.0, 16.0]
    alone = dataclasses.replace(DEVICE, curve=((100.0, 2.0),))
    assert alone.seconds(np.array([100, 300])).tolist() == [2.0, 6.0]


def test_a_rank_takes_as_long_as_is_planned(model: distcompile.DistributedModel) -> None:
    """What was measured on some numbers of atoms holds for another within a factor of 3, on whatever machine."""
    graphs = [model.prepared(toys.random_graph(n, 2, angles=True)) for n in (10, 50, 400)]
    needed = work(model.program)
    device = this_machine(graphs, needed)
    assert len(device.curve) == 3
    executor, prepared = model.prepared(toys.random_graph(150, 3, angles=True))
    layout = executor.laid_out(prepared, executor.divide(prepared, 1))
    held = rank_counts(executor.program, prepared.sizes, layout.division)
    (seconds,) = LocalWorld(1).run(
        lambda comm: min(timed(lambda: executor.run_rank(comm, prepared, layout))[1] for _ in range(3))
    )
    assert 1 / 3 < step(device, needed, held, HOST).local / seconds < 3


def test_a_device_is_kept_in_a_file(tmp_path: Path) -> None:
    write_device(tmp_path / "here.json", DEVICE)
    assert read_device(tmp_path / "here.json") == DEVICE
    for text in ('{"name": "here"}', '{"curve": []}', "nothing"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match="does not hold the figures of a device"):
            read_device(tmp_path / "other.json")


def test_messages_of_this_machine() -> None:
    """Between a microsecond and 50 ms, 1 MB/s and 100 GB/s: a clock read wrongly would not be."""
    latency, per_byte = network()
    assert 1e-6 < latency < 5e-2
    assert 1e-11 < per_byte < 1e-6


def test_work_counts_products_and_what_moves() -> None:
    """One linear layer on each row: 2 x 4 x 8 operations. Operands and results of six operators, no weights."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 8))

        def forward(self, graph: toys.Graph) -> Tensor:
            ends = graph["positions"][graph["edge_index"][0]]
            return ((graph["features"] @ self.weight).sum(1) * ends.sum(1)).sum()

    graph = {
        "features": torch.ones(50, 4),
        "positions": torch.rand(10, 3),
        "edge_index": torch.randint(0, 10, (2, 50), generator=torch.Generator().manual_seed(0)),
    }
    model = distcompile.compile(Linear(), graph, world=LocalWorld(1), validate=False)
    rows = work(model.program).rows
    product, sums, gather, times, total = 4 * (4 + 8), 4 * (8 + 1) + 4 * (3 + 1), 8 + 4 * 3, 4 * 3, 4
    assert rows == {"atoms": RowWork(0, 0), "rows": RowWork(product + sums + gather + times + total, 2 * 4 * 8)}


def test_a_few_atoms_keep_their_distances() -> None:
    atoms = structures.crystal((4, 3, 3))
    found = few(atoms)
    assert len(found) == EXAMPLE
    apart = found.get_all_distances(mic=True) + 10 * np.eye(EXAMPLE)
    assert apart.min() > 1.5 and MARGIN > 1.5
    assert (apart.min(1) < 2.5).all()
    assert few(atoms[:10]) == atoms[:10]


@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_are_divided_as_ranks_divide_them(ranks: int) -> None:
    """Where atoms have unlike numbers of rows, each rank of a plan has those of a run."""
    atoms = structures.crystal_in_gas()
    found = forecast(atoms, springs.SpringCalculator(), [ranks], ["a100"], None)
    held = found.columns[-1].ranks
    atoms.calc = distcompile.distribute(springs.SpringCalculator(), LocalWorld(ranks), lowering="eager")
    atoms.get_forces()  # learns
    atoms.positions[0, 0] += 1e-3
    atoms.get_forces()
    rows = statistics(atoms.calc)
    for name in rows[0]["owned"]:
        assert held.spaces[name].owned.tolist() == [row["owned"][name] for row in rows]
    of_all_spaces = [sum(row["owned"].values()) for row in rows]
    assert max(of_all_spaces) < 1.03 * np.mean(of_all_spaces)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "oxide.extxyz", structures.crystal((2, 2, 1)))
    shutil.copy(springs.__file__, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


SPRINGS = ["plan", "oxide.extxyz", "--calculator", "springs.py:SpringCalculator"]


def test_the_command(folder: Path) -> None:
    """Ranks with spaces, several devices, a repeated cell, a picture; every assumption is printed."""
    options = ["--ranks", "2", "8", "--device", "a100,cpu", "--repeat", "2", "1", "2", "--plot", "p.png"]
    done = CliRunner().invoke(app, [*SPRINGS, *options])
    assert done.exit_code == 0, done.output
    rows = [re.split(r" *│ *", line)[1:-1] for line in done.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["1", "2", "8"] * 4
    assert "Mg16O15: 124 atoms" in done.stdout
    assert rows[0][3] == "124 + 0"
    assert rows[6][-2:] == rows[9][-2:] == ["100%", "100%"]
    for device in ("a100: published figures, not measured", "cpu: measured on this machine"):
        assert device in done.stdout
    assert (folder / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_figures_of_a_machine_are_kept(folder: Path) -> None:
    """Measured where there is no file, taken from it where there is."""
    for _ in range(2):
        done = CliRunner().invoke(app, [*SPRINGS, "--ranks", "2", "--measured", "here.json"])
        assert done.exit_code == 0, done.output
        device = dataclasses.replace(read_device(folder / "here.json"), name="our cluster", basis="known by heart")
        write_device(folder / "here.json", device)
    assert "our cluster: known by heart" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "2", "--device", "abacus"], "--device takes a100, h100 and cpu, not 'abacus'"),
        (["--ranks", "two"], "--ranks takes numbers of ranks, not 'two'"),
        (["--ranks", "0"], "--ranks takes numbers of ranks, not '0'"),
        (["--ranks", "2", "--measured", "springs.py"], "springs.py does not hold the figures of a device"),
        (["--ranks", "2", "--calculator", "ase.calculators.emt:EMT"], "EMT holds no torch.nn.Module"),
        (["--ranks", "2", "--plot", "p.nonsense"], "p.nonsense cannot be drawn"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, [*SPRINGS, *arguments])
    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_species_are_named(folder: Path) -> None:
    atoms = structures.crystal((3, 3, 3))
    atoms.numbers[-1] = 54
    write("oxide.extxyz", atoms)
    done = CliRunner().invoke(app, [*SPRINGS, "--ranks", "2"])
    assert done.exit_code == 1
    assert f"does not know Xe (atom {len(atoms) - 1})" in done.stderr
