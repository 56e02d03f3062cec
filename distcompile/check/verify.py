"""What must hold of a program between passes; run by the tests after each of them."""

from __future__ import annotations

from torch import fx

from ..ir import META, Halo, Placement, Program
from ..rules.indexing import accesses
from ..runtime.operators.halo import COLLECTIVES


def verify(program: Program) -> None:
    """Check a program's invariants.

    Raises:
        AssertionError: one does not hold; the message names the node.
    """
    program.graph.graph.lint()
    placed = [n for n in program.graph.graph.nodes if META in n.meta]
    if program.inputs:
        _check_inputs(program)
    if program.spaces:
        assert len({s.name for s in program.spaces}) == len(program.spaces), "two spaces of one name"
        for space in program.spaces[1:]:
            owners = {p.origin for p in program.pointers if p.source == space and p.owner}
            owners = owners or {p.origin for p in program.pointers if space in p.source.blocks and p.owner}
            divided = space.sharded and not space.blocks
            assert not placed or not divided or len(owners) == 1, f"{space} has {len(owners)} owner pointers"
    if placed:
        assert len(placed) == len(program.graph.graph.nodes), "a node without a placement"
    if any(n.target in COLLECTIVES for n in program.graph.graph.nodes):
        for node in placed:
            _check_halo(program, node)


def _check_inputs(program: Program) -> None:
    placeholders = [n.name for n in program.graph.graph.nodes if n.op == "placeholder"]
    inputs = [i.name for i in program.inputs]
    missing = set(placeholders) - set(inputs)
    assert not missing, f"placeholders without an input: {missing}"
    for pointer in program.pointers:
        assert program.inputs[pointer.input].name == pointer.name, f"{pointer.name} is not input {pointer.input}"


def _check_halo(program: Program, node: fx.Node) -> None:
    """Halo rows are made by an exchange or a padding, and read through pointers only."""
    for access in accesses(node):
        index = access.index
        while index.op == "call_function":
            index = index.args[0]  # type: ignore[assignment]
        pointer = next((p for p in program.pointers if p.name == index.name), None)
        dims = access.table.meta[META].dims
        if pointer is None or not pointer.leaves_rank or not dims[access.dim]:
            continue
        assert isinstance(dims[access.dim][0], Halo), f"{node}: {pointer.name} may leave the rank, but there is no halo"
    place = node.meta[META]
    if node.target in COLLECTIVES and isinstance(place, Placement):
        assert not place.partial, f"{node}: a collective with a partial result"
