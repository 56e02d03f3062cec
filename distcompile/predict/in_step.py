"""Whether it pays to run groups of regions in step: what they pass to each other is spared, other sums are kept.

sums of messages at an atom       exist for a stretch: not written to memory, not read
sums at other atoms (senders)     the rows of a stretch are kept until it is its turn, so that two threads do not add
                                  to one row: written and read once more
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ir import Tiled
from ..rules.cost import bytes_per_row
from ..runtime.execution.grouping import grouped
from ..runtime.execution.in_step import InStep, Member, Sums
from ..runtime.execution.tiles import Add, Store

NEAR = 0.5
"""The cost of a byte that is kept for a stretch, which a cache holds in part, beside one that exists for all rows."""


def pays(program: Tiled) -> bool:
    """True if a tiling whose groups run in step moves less than the same regions one after the other."""
    groups = [m for m in grouped(program).children() if isinstance(m, InStep)]
    moved = [each for group in groups for member in group.members for each in _moved(program, group, member)]
    spared, kept = (sum(found) for found in zip(*moved, strict=True)) if moved else (0.0, 0.0)
    return spared >= NEAR * kept


def _moved(program: Tiled, group: InStep, member: Member) -> Iterator[tuple[float, float]]:
    """Bytes that each result of a region spares, and bytes that are kept for it, of the example."""
    spec = member.region.spec
    outputs = iter(list(member.region.graph_module.graph.nodes)[-1].args[0])
    for result, more, at, j in zip(spec.results, member.more, member.results, range(len(spec.results)), strict=True):
        value = next(outputs)
        value = next(outputs) if isinstance(result, Add) else value
        width = bytes_per_row(program, value)
        if isinstance(more, Sums):
            _, followed = group.follows[spec.space]
            yield _rows(program, followed) * width, 0.0
        elif isinstance(result, Store) and at is None:
            yield _rows(program, spec.space) * width, 0.0
        elif isinstance(result, Add) and j not in member.near_results:
            yield 0.0, _rows(program, spec.space) * width


def _rows(program: Tiled, space: str) -> int:
    """Rows of a space in the example."""
    return program.captured.hint(program.space(space).symbol)
