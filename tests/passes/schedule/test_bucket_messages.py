"""Messages that start together are one message, and what comes is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from adversaries import F, Toy, add_to, gaussians
from left_out import compiled
from processes import run_ranks
from torch import Tensor
from toys import Graph, Result, random_graph

import distcompile
from distcompile import LocalWorld
from distcompile.passes.schedule.bucket_messages import bucket_messages
from distcompile.runtime.operators.buckets import bucket, send
from distcompile.runtime.operators.halo import halo_exchange, halo_reduce
from distcompile.runtime.operators.messages import start, wait
from distcompile.runtime.world import _LocalCommunicator
from distcompile.testing import check_model


class TwoFeatures(Toy):
    """Scalars and vectors of atoms: a message needs both, of the atom at its other end."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        sender, receiver = graph["edge_index"]
        w = self.radial(gaussians(lengths))
        s = self.embedding(graph["species"])
        v = torch.zeros(len(s), 3, F, dtype=s.dtype)
        for _ in range(2):
            scalars, turned = torch.tanh(self.mix(s)), torch.sin(v) @ self.mix.weight
            message = w * scalars[sender] * scalars[receiver]
            carried = message[:, None] * (turned[sender] + vectors[:, :, None])
            v = v + torch.zeros_like(v).index_add(0, receiver, carried)
            s = s + torch.zeros_like(s).index_add(0, receiver, message * (turned[sender] ** 2).sum(1))
        return self.readout(torch.tanh(s) + (v**2).sum(1)).sum(), {"vectors": v.detach()}


class SumsOfEachEnd(Toy):
    """Sums at either end of the edges, both read again: one is made whole, in place, and then sent."""

    def energy(self, graph: Graph, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Result]:
        sender, receiver = graph["edge_index"]
        w, h = torch.exp(-lengths), self.embedding(graph["species"])
        return (w * add_to(w, receiver, h)[receiver] * add_to(w, sender, h)[sender]).sum(), {}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ranks that send, in order."""
    found: list[int] = []
    real = _LocalCommunicator.all_to_all_start

    def counted(self: Any, rows: Tensor, to: Sequence[int], of: Sequence[int]) -> Callable[[], Tensor]:
        found.append(self.rank)
        return real(self, rows, to, of)

    monkeypatch.setattr(_LocalCommunicator, "all_to_all_start", counted)
    return found


def test_two_features_cross_in_one_message(messages: list[int]) -> None:
    """Of the second layer, which exchanges both, and of its gradients."""
    model, example, graph = TwoFeatures().eval(), random_graph(20, 1), random_graph(60, 2)
    counts = {}
    for left_out in ((), (bucket_messages,)):
        dmodel = compiled(model, example, *left_out).on(LocalWorld(3))
        messages.clear()
        found = dmodel(graph)
        counts[left_out] = messages.count(0)
        for key, value in model(graph).items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10)
        if not left_out:
            shared = dmodel.explain().count("in one message with")
    assert shared >= 2
    assert counts[()] == counts[bucket_messages,] - shared


@pytest.mark.parametrize("kind", [TwoFeatures, SumsOfEachEnd])
def test_in_every_size(kind: type[Toy]) -> None:
    """Ranks without rows, atoms without neighbours, more ranks than atoms."""
    graphs = [random_graph(n, n) for n in (33, 5)] + [random_graph(12, 4, volume=1e6)]
    check_model(kind().eval(), random_graph(20, 1), graphs, (1, 2, 4, 7), relative=1e-11)


SENT = ([[0, 2, 1], [0, 0, 1], [1, 0, 0]], [[0, 0, 0], [3, 0, 0], [0, 1, 0]])
"""For each of two spaces: rows that a rank (by line) sends to each."""


def one_and_one() -> list[list[Tensor]]:
    """An exchange of float32 rows, a reduction of float64 numbers and an exchange of booleans, in one message."""
    world: Any = distcompile.ProcessGroupWorld() if dist.is_initialized() else LocalWorld(3)

    def work(comm: Any) -> list[Tensor]:
        plans, halos = [], []
        for sent in SENT:
            to, of = sent[comm.rank], [line[comm.rank] for line in sent]
            plans.append((torch.arange(sum(to)) % 4, torch.tensor([to, of])))
            halos.append(sum(of))
        rows = torch.arange(4 * 3.0).reshape(4, 3) + 100 * comm.rank
        numbers = torch.arange(4 + halos[1], dtype=torch.float64) + 10 * comm.rank
        flags = rows[:, 0] % 2 == comm.rank % 2
        shared = bucket()
        first = start("exchange", rows, *plans[0], halos[0], 0, bucket=shared)
        second = start("reduce", numbers, *plans[1], halos[1], 0, bucket=shared)
        third = start("exchange", flags, *plans[0], halos[0], 0, bucket=shared)
        send(shared)
        together = [wait(third, flags), wait(first, rows), wait(second, numbers)]
        alone = [
            halo_exchange(flags, *plans[0], halos[0], 0),
            halo_exchange(rows, *plans[0], halos[0], 0),
            halo_reduce(numbers, *plans[1], halos[1], 0),
        ]
        for ours, expected in zip(together, alone, strict=True):
            assert ours.dtype == expected.dtype
            assert torch.equal(ours, expected)
        return together

    return list(world.run(work))


def test_any_spaces_and_kinds_of_numbers(messages: list[int]) -> None:
    answers = one_and_one()
    assert messages.count(0) == 1 + 3
    assert answers[0][1][4:].tolist() == [[200, 201, 202]]
    assert answers[1][2].tolist() == [10 + 4, 11 + 5, 12 + 6, 13]


def test_between_processes() -> None:
    for answer, expected in zip(run_ranks(3, one_and_one), one_and_one(), strict=True):
        for ours, theirs in zip(answer[0], expected, strict=True):
            assert torch.equal(ours, theirs)
