"""What other ways to distribute a model would send, counted: one system, many ranks, several rules, nothing run.

    python benchmarks/rules.py --models mace:medium chgnet
    python benchmarks/rules.py --models sevennet esen:4:128          (in the other environment)

The liquid of tests/systems.py, float32, an evaluation of energy and forces. The graph is the real one, its rows are
divided by `runtime.division.plan.divide`, and how wide a row is comes from the captured program, whose forward pass is
what the energy is computed from. Each rule is its project's, and where it is open, the cheaper side is counted:

ours        The collectives of the compiled program, its own partition.
once        Nobody's: our partition, the features that each layer needs sent once where they are narrowest, for rows
            that something was summed into, and their gradients once back. The least without computing sums twice.
nvalchemi   NVIDIA/nvalchemi-toolkit, docs/userguide/distributed_design.md ("The scatter rule", "The forward pass, three
            steps"), distributed_shardtensor.md ("Halo storage in detail"): at every scatter into atoms a reverse and a
            forward exchange of what was scattered, the adjoints of both in the backward pass; equal bricks. Cheaper
            side: gathers send nothing, as the documents say (`_halo_forward_sync_before_index_select` refreshes there
            too); halo rows are those that are read, not all within cutoff and skin; bonds as with `once`.
DistMLIP    AegisIK/DistMLIP, implementations/mace/models.py, matgl/models/chgnet.py and tensornet.py (`atom_transfer`,
            `bond_transfer` after each layer, the last included), distributed/dist.py (`transfer_nodes`); autograd sends
            the gradients back. Slabs along the longest axis, here of equal counts, there of equal width. Cheaper side:
            slabs may be thinner than a cutoff (there refused); bonds are undirected and go once a layer (there directed
            and twice, and lengths and vectors before the first); the last layer's features, which no edge reads, are as
            wide as the narrowest that any layer reads.
ghosts      LAMMPS pair styles of message-passing models (docs.lammps.org: comm_modify cutoff, newton on): atoms within
            layers x cutoff are ghosts, positions go out once, forces come back once; equal bricks. Cheaper side: ghosts
            that no chain of edges reaches are not sent, an edge is computed only in the layers that need it, angles
            reach no further than edges. "edge work" is edges computed by all ranks, over layers x edges.
all-gather  FAIR-Chem/fairchem, src/fairchem/core/models/uma/escn_md_block.py (`Edgewise.forward`), common/gp_utils.py
            (`GatherFromModelParallelRegionSumGradPadded`), models/uma/outputs.py (forces): each layer gathers features
            of all atoms on every rank, gradients are reduce-scattered, forces all-reduced. Cheaper side: features of
            species only are not gathered, bonds never; positions are everywhere anyway.

Positions out and forces back are counted once for each rule with halos, but for ours as the program has them. Bytes are
what a rank receives in exchanges and sends in reductions (in ring collectives, what it receives). Sums of scalars, and
results that are put together on every rank, are not counted. Read at nvalchemi-toolkit bdc7fb6, DistMLIP 9824cd4,
fairchem-core 2.24.0. A model takes a minute and up to 4 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from single import in_single_precision, rocksalt, stock_case
from torch import fx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from systems import System, liquid

import distcompile
from distcompile.ir import Access, Normal, Placed, Pointer, Space
from distcompile.ir.operators import pointer_root
from distcompile.ir.tree import flatten
from distcompile.passes import STAGES, run
from distcompile.predict.account import collectives
from distcompile.rules.cost import bytes_per_row
from distcompile.rules.indexing import accesses
from distcompile.rules.levels import rows_of, source_of
from distcompile.runtime.division.partition import Partition
from distcompile.runtime.division.plan import Division
from distcompile.runtime.division.readers import readers
from distcompile.runtime.execution.executor import Executor
from distcompile.runtime.execution.precision import as_written
from distcompile.runtime.execution.preparing import Prepared

ENERGY = ("['energy']", "['e']", "['inferred_total_energy']", "[0]")
"""How models name their energy."""

DENSITY = 0.1
"""Atoms of the liquid in an A^3."""

VECTOR = 12
"""Bytes of a position or force."""

Counts = np.ndarray
"""A number for each rank.  # Shape: [n_ranks]"""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a space that a rule moves."""

    space: str
    bytes: int
    """Of a row."""

    def __str__(self) -> str:
        return f"{self.bytes} ({self.space})"


@dataclasses.dataclass(frozen=True)
class Forward:
    """What a model's forward pass moves between its rows."""

    sums: tuple[Rows, ...]
    """Each scatter of rows of another space into rows: how wide is what is added."""
    through: tuple[Pointer, ...]
    """Of each of these."""
    layers: tuple[Rows, ...]
    """Features that have passed a sum and are read through a pointer that may leave the rank, where narrowest."""
    narrowest: int
    """Bytes of the narrowest features of an atom that edges read; positions and species are none."""
    depth: int
    """Sums into atoms one after another: how many cutoffs an atom sees."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One rule."""

    name: str
    moved: Counts
    """Bytes."""
    halo: Counts
    """Halo rows of atoms."""
    work: float = 1.0
    """Edges computed on all ranks, over edges."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on the liquid."""

    system: System
    forward: Forward
    executor: Executor
    prepared: Prepared


def forward_pass(program: Placed, energy: int) -> Forward:
    """Read off a captured call what its forward pass sums and reads.

    Args:
        program: of which only the capture is used: the model's operators as they stand, before halos and products in
            another order.
        energy: which tensor of the result is the energy.
    """
    before_halos = STAGES[: [stage.name for stage in STAGES].index("halos")]
    with as_written():
        captured = program.captured
        program = run(Normal(captured, captured.graph_module), before_halos, without=("reassociate",))
    (output,) = [n for n in program.graph.graph.nodes if n.op == "output"]
    given: Any = output.args[0]
    nodes = _ancestors(given[program.outputs[energy].position])
    found = [found for node in nodes for found in _accesses(program, node)]
    atoms = program.spaces[0]
    sums = {access.node: p for access, p in found if access.kind == "scatter" and p.source != p.target}
    passed = _passed(nodes, sums.keys())
    reads = [(access.table, p) for access, p in found if access.kind == "gather" and p.leaves_rank]
    stale = dict.fromkeys((p.target, passed[table]) for table, p in reads if passed[table])
    features = [bytes_ for t, p in reads if p.target == atoms and (bytes_ := _bytes(program, t)) > VECTOR]
    layers = [
        Rows(space.name, _narrowest(program, [t for t, p in reads if (p.target, passed[t]) == (space, level)], passed))
        for space, level in stale
    ]
    return Forward(
        tuple(Rows(p.target.name, _bytes(program, source)) for n, p in sums.items() if (source := source_of(n))),
        tuple(sums.values()),
        tuple(layers),
        min(features),
        max(_passed(nodes, [n for n, p in sums.items() if p.target == atoms]).values()),
    )


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """A node and all that it is computed from, in order."""
    found, pending = {node}, [node]
    while pending:
        new = set(pending.pop().all_input_nodes) - found
        found |= new
        pending += new
    return [n for n in node.graph.nodes if n in found]


def _accesses(program: Placed, node: fx.Node) -> list[tuple[Access, Pointer]]:
    """Uses of pointers into spaces that are divided."""
    pointers = {p.name: p for p in program.pointers if p.target.sharded}
    roots = [(access, pointer_root(access.index)) for access in accesses(node)]
    return [(access, pointers[root.name]) for access, root in roots if root is not None and root.name in pointers]


def _passed(nodes: list[fx.Node], sums: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """For each node, the sums on the longest way to it."""
    counted, found = set(sums), dict[fx.Node, int]()
    for node in nodes:
        found[node] = max((found[n] for n in node.all_input_nodes), default=0) + (node in counted)
    return found


def _narrowest(program: Placed, tables: list[fx.Node], passed: dict[fx.Node, int]) -> int:
    """Bytes of a row that must be sent for a halo row of all tables to be computed, by a minimum cut.

    What passed fewer sums is there already. The rest is computed row by row from what was summed, or read from others.
    """
    space, level = _space(tables[0]), passed[tables[0]]
    graph = nx.DiGraph()
    pending, seen = list(tables), set(tables)
    for table in tables:
        graph.add_edge((table, "out"), "sink")
    while pending:
        node = pending.pop()
        graph.add_edge((node, "in"), (node, "out"), capacity=bytes_per_row(program, node))  # without end: no tensor
        needed = [n for n in node.all_input_nodes if passed[n] == level]
        if accesses(node) or any(_space(n) != space for n in needed):
            graph.add_edge("source", (node, "in"))
            continue
        for operand in needed:
            graph.add_edge((operand, "out"), (node, "in"))
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return int(nx.minimum_cut_value(graph, "source", "sink"))


def _space(node: fx.Node) -> Space | None:
    rows = rows_of(node)
    return rows.space if rows is not None else None


def _bytes(program: Placed, node: fx.Node) -> int:
    return int(bytes_per_row(program, node))


def case(name: str, atoms: int) -> Case:
    """Compile a model on a few atoms, and prepare the liquid for it."""
    stock = stock_case(name)
    model = stock.model.float().eval()
    model.requires_grad_(False)
    example = in_single_precision(stock.graph(rocksalt((2, 2, 2))))
    compiled = distcompile.compile(model, example, model_kwargs=stock.kwargs, validate=False)
    results, _ = flatten(model(*example, **stock.kwargs))
    (energy,) = [i for i, leaf in enumerate(results) if leaf.path in ENERGY]
    if name == "chgnet":
        converter = model.graph_converter
        system = liquid(atoms, converter.atom_graph_cutoff)
        graph: tuple[Any, ...] = ([crystal_graph(system, converter)],)
    else:
        system = liquid(atoms)
        graph = in_single_precision(stock.graph(as_atoms(system)))
    executor, prepared = compiled.prepared(*graph)
    return Case(system, forward_pass(executor.program, energy), executor, prepared)


def side(system: System) -> float:
    """Of the liquid's cubic box, in A."""
    return float((len(system.positions) / DENSITY) ** (1 / 3))


def as_atoms(system: System) -> Any:
    """The liquid as ASE atoms."""
    from ase import Atoms

    return Atoms(_species(system), system.positions.numpy(), cell=np.full(3, side(system)), pbc=True)


def _species(system: System) -> np.ndarray:
    """Every third atom O, the others H; what is counted does not depend on them."""
    return np.where(np.arange(len(system.positions)) % 3 == 0, 8, 1)


def crystal_graph(system: System, converter: Any) -> Any:
    """What CHGNet's converter makes of the liquid, which of so many atoms takes 20 GB of Python objects there.

    Args:
        system: the liquid, its pairs within the cutoff of the atom graph.
        converter: CHGNet's.
    """
    from chgnet.graph.crystalgraph import CrystalGraph

    neighbour, centre = system.pairs
    fractional = system.positions / side(system)
    apart = fractional[neighbour] - fractional[centre]
    near = ((apart - apart.round()).norm(dim=1) * side(system) < converter.bond_graph_cutoff).nonzero().flatten()
    n = len(system.positions)
    _, first, bond = np.unique(
        torch.minimum(neighbour, centre) * n + torch.maximum(neighbour, centre), return_index=True, return_inverse=True
    )
    bonds = torch.from_numpy(bond)
    one, two = _both_of_all(centre[near], n)
    one, two = near[one], near[two]
    return CrystalGraph(
        atomic_number=torch.from_numpy(_species(system)).int(),
        atom_frac_coord=fractional.float().requires_grad_(),
        atom_graph=torch.stack([centre, neighbour], 1).int(),
        atom_graph_cutoff=converter.atom_graph_cutoff,
        neighbor_image=-apart.round().float(),
        directed2undirected=bonds.int(),
        undirected2directed=torch.from_numpy(first).int(),
        bond_graph=torch.stack([centre[one], bonds[one], one, bonds[two], two], 1).int(),
        bond_graph_cutoff=converter.bond_graph_cutoff,
        lattice=(torch.eye(3) * side(system)).requires_grad_(),
    )


def _both_of_all(group: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every two entries of equal value, in either order.

    Args:
        group: ascending.
        groups: one more than the largest value there may be.
    """
    sizes = torch.bincount(group, minlength=groups)
    starts = sizes.cumsum(0) - sizes
    one = torch.arange(len(group)).repeat_interleave(sizes[group])
    within = torch.arange(len(one)) - (sizes[group].cumsum(0) - sizes[group])[one]
    two = starts[group[one]] + within
    return one[one != two], two[one != two]


def bricks(system: System, parts: int) -> torch.Tensor:
    """The rank of each atom in a grid of equal cells, as even as `parts` allows."""
    counts = _grid(parts)
    grid = torch.tensor(counts)
    cells = (system.positions / side(system) * grid).long() % grid
    return (cells[:, 0] * counts[1] + cells[:, 1]) * counts[2] + cells[:, 2]


def _grid(parts: int) -> tuple[int, int, int]:
    """Three factors whose cells have the least surface."""
    grids = [(a, b, parts // a // b) for a in range(1, parts + 1) for b in range(1, parts + 1) if parts % (a * b) == 0]
    return min(grids, key=sum)


def slabs(system: System, parts: int) -> torch.Tensor:
    """The rank of each atom in slabs of equal counts along the first axis; the box is a cube."""
    order = system.positions[:, 0].argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) * parts // len(order)
    return ranks


def lines(given: Case, parts: int) -> list[Line]:
    """All rules."""
    forward, executor, n = given.forward, given.executor, len(given.system.positions)
    atoms = executor.program.spaces[0].name
    stale = summed_into(given)
    division = executor.divide(given.prepared, parts)
    read = {space: np.array(division.halo_counts(space)) for space in division.halo_keys}
    own = halos(division, stale)
    grid = bricks(given.system, parts)
    brick, slab = (halos(_divided_so(given, ranks, parts), stale) for ranks in (grid, slabs(given.system, parts)))
    ours = [Rows(c.space, c.row_bytes) for c in collectives(executor.program) if c.space]
    narrow = [Rows(atoms, VECTOR), *forward.layers]
    of_atoms = [r for r in forward.sums if r.space == atoms]
    others = [r for r in forward.layers if r.space != atoms]
    gathered = sum(r.bytes for r in forward.layers if r.space == atoms) + VECTOR
    reached, work = ghosts(readers(n, neighbours(executor.program, given.prepared)), grid.numpy(), parts, forward.depth)
    elsewhere = n - np.bincount(np.arange(n) * parts // n, minlength=parts)
    return [
        Line("ours", moved(ours, read), read[atoms]),
        Line("once", 2 * moved(narrow, own), own[atoms]),
        Line("nvalchemi", 2 * moved([Rows(atoms, VECTOR), *of_atoms, *of_atoms, *others], brick), brick[atoms]),
        Line("DistMLIP", 2 * moved([*narrow, Rows(atoms, forward.narrowest)], slab), slab[atoms]),
        Line("ghosts", 2 * VECTOR * reached, reached, work),
        Line("all-gather", 2 * gathered * elsewhere, elsewhere),
    ]


def summed_into(given: Case) -> dict[str, torch.Tensor]:
    """By space, which rows something is summed into; others depend on positions only (bonds too long for angles)."""
    found = {name: torch.zeros(rows, dtype=torch.bool) for name, rows in given.prepared.sizes.items()}
    for pointer in given.forward.through:
        assert pointer in given.executor.program.pointers  # the same index program, so the same values
        found[pointer.target.name][pointer.by_rows(given.prepared.pointers[pointer.name]).long()] = True
    return found


def halos(division: Division, among: dict[str, torch.Tensor]) -> dict[str, Counts]:
    """By space, the halo rows of each rank among some rows."""
    found = {}
    for name, owners in division.ranks.items():
        keys, rows = division.halo_keys[name], max(len(owners), 1)
        counted = (keys // rows)[among[name][keys % rows]]
        found[name] = torch.bincount(counted, minlength=division.parts).numpy()
    return found


def moved(rows: Iterable[Rows], halo: dict[str, Counts]) -> Counts:
    """Bytes of one exchange or reduction of each of `rows`."""
    return sum((r.bytes * halo[r.space] for r in rows), np.zeros_like(next(iter(halo.values()))))


def _divided_so(given: Case, ranks: torch.Tensor, parts: int) -> Division:
    """The rows of all spaces where atoms are divided like this."""
    kept = Partition(ranks, "as given", halo_per_atom=0.0, imbalance=1.0, step=math.inf)  # no worse than it was
    return given.executor.divide(given.prepared, parts, kept)


def neighbours(program: Placed, prepared: Prepared) -> torch.Tensor:
    """Atoms that are read, and atoms whose edges read them.  # Shape: [2, n_edges]"""
    atoms = program.spaces[0]
    ends = [p for p in program.pointers if p.target == atoms and not p.identity]
    other, own = next(
        (p, q) for p in ends for q in ends if p.source == q.source and q.owner and p.origin != q.origin and not p.owner
    )
    return torch.cat([end.by_rows(prepared.pointers[end.name]).T for end in (other, own)]).long()


def ghosts(reading: Any, ranks: np.ndarray, parts: int, depth: int) -> tuple[Counts, float]:
    """Atoms of other ranks that each rank needs to compute its own without an exchange, and how much more work it is.

    Args:
        reading: see `runtime.readers.readers`.
        ranks: the rank of each atom.
        parts: number of ranks.
        depth: sums into atoms, one after another.
    """
    needed = np.eye(parts, dtype=np.float32)[ranks]
    edges = np.asarray(reading.sum(axis=0), dtype=np.float64)
    work = 0.0
    for _ in range(depth):  # the last layer is for own atoms, each one before it for their neighbours too
        work += float((edges @ needed).sum())
        needed = ((reading @ needed + needed) > 0).astype(np.float32)
    reached = needed.sum(axis=0, dtype=np.float64).astype(np.int64) - np.bincount(ranks, minlength=parts)
    return reached, work / float(edges.sum()) / depth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mace:medium", "chgnet"])
    parser.add_argument("--atoms", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=64)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(__doc__)
    for name in options.models:
        given = case(name, options.atoms)
        report(name, given, lines(given, options.ranks))


def report(name: str, given: Case, found: list[Line]) -> None:
    """What was read from the model, and a line for each rule."""
    sizes, forward, parts = given.prepared.sizes, given.forward, len(found[0].moved)
    rows = ", ".join(f"{sizes[s.name]} {s.name}" for s in given.executor.program.spaces if s.sharded)
    print(f"\n{name}: {rows}; {parts} ranks")
    print(f"  bytes of a row summed: {', '.join(map(str, forward.sums))}; {forward.depth} sums into atoms in a row")
    print(f"  bytes of a row that a layer must have: {', '.join(map(str, forward.layers))}")
    print(f"  bytes of the narrowest features of an atom that edges read: {forward.narrowest}")
    print("  {:<12} {:>12} {:>12} {:>14} {:>10} {:>10}".format(
        "", "GB all ranks", "MB a rank", "MB fullest", "halo/atom", "edge work"
    ))  # fmt: skip
    for line in found:
        print(
            f"  {line.name:<12} {line.moved.sum() / 1e9:>12.3f} {line.moved.mean() / 1e6:>12.2f} "
            f"{line.moved.max() / 1e6:>14.2f} {line.halo.sum() / sizes['atoms']:>10.2f} {line.work:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
