"""The rules that a program keeps after each stage: the tests, and `run(..., check=True)`, hold it to them.

Source: the idea of one specification for each stage of a compiler is that of the spec module of tinygrad.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from ..ir import META, Distributed, Halo, Normal, Placed, Placement, Runnable, Tiled
from ..ir.graphs import writes
from ..ir.operators import facts
from ..rules.indexing import accesses
from ..runtime.execution.tiles import Region
from ..runtime.operators.messages import start, wait


def functional(program: Normal) -> None:
    """Operators return new tensors, each node carries its value, and no operator communicates."""
    _returns_new_tensors(program)
    for node in program.graph.graph.nodes:
        assert facts(node).crosses is None, f"{node} communicates before its place is known"


def placed(program: Placed) -> None:
    """Every input has a role, every divided space one owner pointer, every node a placement.

    Ranks communicate only where a stretch runs whole: they gather its rows.
    """
    _returns_new_tensors(program)
    nodes = list(program.graph.graph.nodes)
    for crossing in [c for node in nodes if (c := facts(node).crosses) is not None]:
        assert crossing.to in ("all", "own"), f"rows go to {crossing.to} before halos are inserted"
    _inputs_have_roles(program, nodes)
    names = [s.name for s in program.spaces]
    assert len(set(names)) == len(names), f"two spaces of one name: {names}"
    for space in program.spaces[1:]:
        owners = {p.origin for p in program.pointers if p.source == space and p.owner}
        owners = owners or {p.origin for p in program.pointers if space in p.source.blocks and p.owner}
        divided = space.sharded and not space.blocks
        assert not divided or len(owners) == 1, f"{space} has {len(owners)} owner pointers"
    for node in nodes:
        assert META in node.meta, f"{node} has no placement"


def distributed(program: Distributed) -> None:
    """Halo rows are made by a message and read through pointers only; what crosses is whole."""
    program.graph.graph.lint()
    nodes = list(program.graph.graph.nodes)
    _inputs_have_roles(program, nodes)
    for node in nodes:
        place = node.meta[META]
        if facts(node).crosses is not None and isinstance(place, Placement):
            assert not place.partial, f"{node}: a collective with a partial result"
        _reads_halo_rows(program, node)


def scheduled(program: Tiled) -> None:
    """Each message that is started is waited for once, and a region is given what its body takes."""
    program.tiled.graph.lint()
    nodes = list(program.tiled.graph.nodes)
    waits = Counter(node.args[0] for node in nodes if node.target is wait)
    assert all(n == 1 for n in waits.values()), f"waited for more than once: {waits}"
    started = {node for node in nodes if node.target is start}
    assert started == set(waits), f"started and never waited for, or the other way round: {started ^ set(waits)}"
    for region in program.tiled.children():
        if isinstance(region, Region):
            takes = sum(n.op == "placeholder" for n in region.graph_module.graph.nodes)
            given = len(region.spec.inputs) + 1
            assert takes == given, f"{region.spec.name} takes {takes} inputs and is given {given}"


def runnable(program: Runnable) -> None:
    """As `scheduled`: lowering changes what runs a body, and nothing else."""
    scheduled(program)


def _returns_new_tensors(program: Normal) -> None:
    program.graph.graph.lint()
    for node in program.graph.graph.nodes:
        assert not writes(node.target), f"{node} changes a tensor in place"
        assert node.op in ("output", "get_attr") or "val" in node.meta, f"{node} has no value"


def _inputs_have_roles(program: Placed, nodes: list[fx.Node]) -> None:
    placeholders = {n.name for n in nodes if n.op == "placeholder"}
    missing = placeholders - {i.name for i in program.inputs}
    assert not missing, f"placeholders without an input: {missing}"
    for pointer in program.pointers:
        assert program.inputs[pointer.input].name == pointer.name, f"{pointer.name} is not input {pointer.input}"


def _reads_halo_rows(program: Distributed, node: fx.Node) -> None:
    for access in accesses(node):
        index: Any = access.index
        while index.op == "call_function":
            index = index.args[0]
        pointer = next((p for p in program.pointers if p.name == index.name), None)
        dims = access.table.meta[META].dims
        if pointer is None or not pointer.leaves_rank or not dims[access.dim]:
            continue
        assert isinstance(dims[access.dim][0], Halo), f"{node}: {pointer.name} may leave the rank, but there is no halo"
