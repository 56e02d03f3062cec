"""Ranks agree before they run: on the graph object, the number of the call, and that none refused.

Each rank reports, all hear the reports, and all go on together or all raise.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import RankError
from ...ir.tree import Leaf
from ..world import Communicator, World
from .inputs import together
from .memory import Free


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of one rank to the others before they run."""

    call: int
    graph: str
    """A digest of the graph object and of the settings that the program was captured for."""
    problem: str
    free: Free | None
    """None if a tiling was chosen before, for the same layout."""
    ready: bool = False
    """True if a faster form of the program is ready on this rank."""

    def exchanged(self, comm: Communicator) -> list[Report]:
        """The reports of all ranks."""
        everyone = comm.all_gather_objects(dataclasses.astuple(self))
        return [
            Report(call, graph, problem, Free(*f) if f else None, ready) for call, graph, problem, f, ready in everyone
        ]


def checksums(leaves: Sequence[Leaf]) -> list[Tensor]:
    """A number for each tensor that is on an accelerator."""
    tensors = [leaf.tensor for leaf in leaves]
    return [checksum(t) for t in tensors if t.device.type not in ("cpu", "meta") and t.numel()]


def fingerprint(leaves: Sequence[Leaf], sums: Sequence[int] | None = None) -> str:
    """A short digest of a graph object. It differs between ranks that have drifted apart.

    `sums` are its `checksums`, if these were read.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr(list(together(checksums(leaves)) if sums is None else sums)).encode())
    for leaf in leaves:
        digest.update(f"{leaf.path}{tuple(leaf.tensor.shape)}{leaf.tensor.dtype}".encode())
        if leaf.tensor.dtype == torch.bool and leaf.tensor.stride() == (0,):
            continue  # a Python integer, given as a size
        if leaf.tensor.numel() and leaf.tensor.device.type == "cpu":  # an empty tensor has no view as bytes
            tensor = leaf.tensor.detach().contiguous()
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checksum(tensor: Tensor) -> Tensor:
    """A number made of all bits of a tensor, each by its place, where the tensor is."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
    bits = tensor.detach().contiguous().reshape(-1).view(kinds[tensor.element_size()]).long()
    places = torch.arange(1, 2 * len(bits), 2, device=bits.device)
    return ((bits ^ (bits >> 29)) * places).sum()


def agree(world: World, call: int, leaves: Sequence[Leaf]) -> None:
    """Check that all ranks were given the same graph object, where no other check would find a difference.

    Raises:
        RankError: they were not.
    """
    report = Report(call, fingerprint(leaves) if world.size > 1 else "", "", None)
    world.run(lambda comm: compare(comm.rank, report.exchanged(comm)))


def compare(rank: int, everyone: Sequence[Report]) -> None:
    """All ranks go on together with the same graph, or all raise."""
    for what, values in (("call number", [r.call for r in everyone]), ("graph", [r.graph for r in everyone])):
        if len(set(values)) > 1:
            common = max(values, key=values.count)  # type: ignore[arg-type, type-var]
            odd = [i for i, v in enumerate(values) if v != common]
            refused = [f" Rank {i} refused its graph: {r.problem}" for i, r in enumerate(everyone) if r.problem]
            raise RankError(
                f"Ranks disagree on the {what}: rank {', '.join(map(str, odd))} differs from the others "
                f"(this is rank {rank}). Every rank must evaluate the same structures in the same order; "
                "check random seeds and that no rank reads or moves atoms on its own." + "".join(refused)
            )
