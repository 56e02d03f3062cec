"""Component code as CUDA C++, without a GPU: registers, spills, and a model of its time.

    python benchmarks/gpu_code.py mace:medium
    .venv-e3nn06/bin/python benchmarks/gpu_code.py sevennet

Each body of the program of energy, forces and stress is compiled by NVRTC for each architecture. The time of a body is
that of whichever it needs most of: operations, bytes of shared memory, bytes of memory, bytes of weights from the L2
cache. Peaks are those of data sheets, none is reached in practice; launches are not counted. No GPU has run this code.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

from single import rocksalt, way  # which finds the models of tests/

import distcompile
from distcompile.ir.constants import Constants
from distcompile.passes.lower.components.cpp import Program
from distcompile.passes.lower.components.elements import Unsupported
from distcompile.passes.lower.components.gpu.nvrtc import binary
from distcompile.passes.lower.components.gpu.target import GPU
from distcompile.passes.lower.components.kernel import Body
from distcompile.runtime.execution.tiles import Region


@dataclasses.dataclass(frozen=True)
class Card:
    """Peaks of a card, a second."""

    operations: float
    """Single-precision multiplications with an addition."""
    shared: float
    """Bytes of shared memory: 128 a cycle and multiprocessor."""
    memory: float
    """Bytes of memory."""
    cache: float
    """Bytes of the L2 cache (measured by others: Chips and Cheese 2020, 2023)."""


CARDS = {
    "A100": Card(9.7e12, 108 * 128 * 1.41e9, 2.04e12, 4.0e12),
    "H100": Card(33.5e12, 132 * 128 * 1.76e9, 3.35e12, 5.5e12),
}

PUBLISHED = {"mace": "published for symmetrix, C++ for MACE alone: MACE MP-0 medium, A100, 6.3 us/atom"}


def seconds(program: Program, rows: float, card: Card) -> dict[str, float]:
    """The time that some rows take, by what it is spent on, if it were spent on nothing else."""
    work = program.work * rows
    return {
        "operations": work.operations / card.operations,
        "shared": work.near / card.shared,
        "memory": work.far / card.memory,
        "weights": work.weights / program.lanes / card.cache,
    }


@dataclasses.dataclass(frozen=True)
class Written:
    """A region's body as a program."""

    name: str
    rows: float
    """Rows for each atom."""
    program: Program


def written(name: str, constant: float) -> Iterator[Written]:
    """The bodies of a model's program of energy, forces and stress, on a rattled rocksalt crystal."""
    atoms = rocksalt((3, 3, 3), constant)
    given = way(name, "eager", atoms)
    model = given.call
    assert isinstance(model, distcompile.DistributedModel)
    executor, prepared = model.prepared(*given.prepare(atoms))
    constants = Constants(executor.running.tiled)
    for region_name, region in executor.running.tiled.named_children():
        if isinstance(region, Region) and region.spec.space in prepared.sizes:  # one rank has no halo rows
            try:
                body = Body(executor.running, region_name, constants, GPU)
            except Unsupported as why:
                print(f"{region_name} ({region.spec.space}) has no GPU code: {why}")
                continue
            yield Written(
                f"{region_name} ({region.spec.space})", prepared.sizes[region.spec.space] / len(atoms), body.program
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as in tests/zoo.py: chgnet, mace:medium, sevennet")
    parser.add_argument("--sm", nargs="+", default=["80", "90", "100"], help="architectures to compile for")
    parser.add_argument("--constant", type=float, default=5.64, help="edge of the cubic cell, A")
    arguments = parser.parse_args()
    programs = list(written(arguments.model, arguments.constant))
    print(
        f"{'body':28s} {'rows/atom':>9s} {'lanes':>5s} {'KB':>5s}  registers (bytes spilled) on sm_"
        + ", sm_".join(arguments.sm)
    )
    for each in programs:
        binaries = [binary(each.program.source, f"sm_{sm}") for sm in arguments.sm]
        use = ", ".join(f"{b.registers} ({b.spilled})" for b in binaries)
        print(
            f"{each.name:28s} {each.rows:9.1f} {each.program.lanes:5d} {each.program.scratch / 1024:5.0f}  {use}",
            flush=True,
        )
    for card, peaks in CARDS.items():
        print(f"\n{card}, us/atom at the peaks of its data sheet")
        total = 0.0
        for each in programs:
            times = seconds(each.program, each.rows, peaks)
            total += max(times.values())
            parts = ", ".join(f"{what} {1e6 * t:.3f}" for what, t in times.items())
            print(f"  {each.name:28s} {1e6 * max(times.values()):6.3f}   ({parts})")
        print(f"  all bodies {1e6 * total:.2f}")
    if (family := arguments.model.split(":")[0]) in PUBLISHED:
        print(PUBLISHED[family])


if __name__ == "__main__":
    main()
