"""Learn what a calculator's graph object is made of, and what it makes of its model's result.

    probes ──the package──> graph objects, results ──fit──> layout ──> the same graph objects, up to the order of rows
                                                                 └──> the same results, on probes and on the structure

What was learned holds for the species, the periodic directions and the further arrays of atoms that were met.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ir.tree import Leaf, flatten
from ..model import DistributedModel
from ..runtime.execution.executor import Executor
from .evaluate import Evaluator
from .fit import fit
from .layout import Layout
from .learned import Learned
from .neighbours import find, vectors_of
from .observed import Described, NoRecipeError, Observation, told_by_size
from .probes import probes
from .recipes import EDGES
from .results import Outcome, fit_results
from .rows import Interval
from .structure import Structure, structure_of, views

EXACT = 1e-6
"""A cutoff is known to this, relative; the rounding of single precision decides about pairs that are nearer to it."""

CANCELLED = 0.1
"""Results that symmetry makes small are compared as if they were so many times as large as without."""

MOST_PAIRS = 60
"""Pairs of species whose cutoff is looked at."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a model by its calculator, and what that gave."""

    model: DistributedModel
    graph: tuple[Any, ...]
    returned: Any
    results: Mapping[str, Any]


Ask = Callable[[Any, bool], Call]
"""Lets the calculator evaluate a structure (ASE's atoms); if False is given, only make the graph object of it."""


def learn(ask: Ask, atoms: Any) -> Learned:
    """Learn from structures that are like `atoms`.

    Raises:
        NoRecipeError: there is nothing to learn that would give the same results.
    """
    given = probes(atoms)
    calls = [ask(probe, True) for probe in given]
    first = calls[0]
    if any(call.model is not first.model for call in calls):
        raise NoRecipeError("the calculator calls its model in different ways")
    flat = [first.model.flatten(call.graph) for call in calls]
    tree = flat[0][1]
    if any(other.numbers != tree.numbers for _, other in flat):
        raise NoRecipeError("a Python number in the graph object depends on the structure")
    observed = [
        Observation(structure_of(probe), tuple(leaf.tensor.detach() for leaf in leaves))
        for probe, (leaves, _) in zip(given, flat, strict=True)
    ]
    pbc = observed[0].structure.pbc
    executor = first.model.executor_for(*first.graph)
    leaves = told_by_size(_described(executor, [leaf.path for leaf in flat[0][0]]), observed)
    layout, intervals, observed = _as_the_package_sees_them(leaves, observed)
    cutoffs = {
        s: _cutoff(ask, given[-1], observed[-1].structure, leaves, s, known, layout.kinds[s] == EDGES)
        for s, known in intervals.items()
    }
    layout, _ = fit(leaves, observed, cutoffs)
    outcomes = [
        Outcome(o.structure, [leaf.tensor for leaf in flatten(call.returned)[0]], call.results)
        for o, call in zip(observed, calls, strict=True)
    ]
    results = fit_results(outcomes)
    found = Learned(
        first.model, layout, first.graph, tuple(o.structure for o in observed),
        tuple(leaf.path for leaf in flat[0][0]), tree, results,
        {name: min(_size(call.results[name]) for call in calls) for name in results},
        frozenset(z for o in observed for z in o.structure.numbers.tolist()),
        pbc, observed[0].structure.pbc, frozenset(observed[0].structure.arrays),
    )  # fmt: skip
    for at, begin, end in layout.ignored:
        for o, call in zip(observed, calls, strict=True):
            changed = _affected(found, o, at, begin, end, call.results)
            found = dataclasses.replace(found, results={n: r for n, r in found.results.items() if n not in changed})
        if "energy" not in found.results:
            raise NoRecipeError(f"{found.paths[at]} has no recipe")
    if "energy" not in found.results:
        raise NoRecipeError("no energy comes out of what the model returns")
    for o, call in zip(observed, calls, strict=True):
        check(found, Evaluator(found)(o.structure), call.results)
    return found


def _affected(
    learned: Learned, observed: Observation, at: int, begin: int, end: int, results: Mapping[str, Any]
) -> set[str]:
    """The results that depend on some numbers of a leaf without rows."""
    tensors = list(observed.tensors)
    changed = tensors[at].clone()
    changed.view(-1)[begin:end] = changed.view(-1)[begin:end] * 1.25 + 0.1
    tensors[at] = changed
    leaves = [Leaf(path, tensor) for path, tensor in zip(learned.paths, tensors, strict=True)]
    returned = [leaf.tensor for leaf in flatten(learned.model.on_leaves(leaves, learned.tree))[0]]
    found = {name: recipe(observed.structure, returned) for name, recipe in learned.results.items()}
    return {name for name, value in found.items() if _apart(learned, name, value, results[name])}


def _apart(learned: Learned, name: str, value: Any, stock: Any) -> float:
    """How far a result is from another one, if that is more than rounding; else zero.

    Forces on atoms of a perfect crystal are zero, but for the rounding of terms that are as large as anywhere.
    """
    single = any(leaf.tensor.dtype == torch.float32 for leaf in learned.model.program.captured.leaves)
    apart = _size(np.asarray(value, dtype=float) - np.asarray(stock, dtype=float))
    near = apart <= (2e-4 if single else 1e-8) * max(_size(stock), CANCELLED * learned.sizes[name], 1e-3)
    return 0.0 if near else apart


def _size(value: Any) -> float:
    """The largest number, without its sign."""
    return float(np.abs(np.asarray(value, dtype=float)).max(initial=0.0))


def check(learned: Learned, results: Mapping[str, Any], stock: Mapping[str, Any]) -> None:
    """Compare results with those that the package's graph object gave.

    Raises:
        NoRecipeError: they differ.
    """
    for name, value in results.items():
        if apart := _apart(learned, name, value, stock[name]):
            raise NoRecipeError(f"{name} differs by {apart:.1e} from that of the package's own graph object")


def _described(executor: Executor, paths: Sequence[str]) -> list[Described]:
    """What the compiled program knows of each leaf."""
    program = executor.program
    (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
    sources = (
        [i.source for i in program.inputs] + [at for _, at in program.conditions] + [r.source for r in program.ranges]
    )
    pending, read = [output.args[0][at] for at in sources if at >= 0], set()
    while pending:
        node = pending.pop()
        if node not in read:
            read.add(node)
            only_size = node.target is torch.ops.aten.sym_size.int
            pending += [] if only_size else node.all_input_nodes
    placeholders = [n for n in program.index_program.graph.nodes if n.op == "placeholder"]
    found = []
    for path, sizes, node in zip(paths, program.captured.sizes, placeholders, strict=True):
        spaces = [program.space_of(program.size(size)) for size in sizes]
        found.append(Described(path, tuple(s.name if s is not None else "" for s in spaces), node in read))
    return found


def _as_the_package_sees_them(
    leaves: Sequence[Described], observed: Sequence[Observation]
) -> tuple[Layout, dict[str, Interval], list[Observation]]:
    """A layout that gives what was observed, what is known of its cutoffs, and the structures as it takes them.

    Raises:
        NoRecipeError: there is none, whichever directions the package takes to be periodic.
    """
    failed: NoRecipeError | None = None
    for pbc in views(observed[0].structure):
        seen = [dataclasses.replace(o, structure=o.structure.seen_as(pbc)) for o in observed]
        try:
            return *fit(leaves, seen), seen
        except NoRecipeError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _cutoff(
    ask: Ask, probe: Any, structure: Structure, leaves: Sequence[Described], space: str, known: Interval, edges: bool
) -> float:
    """The exact cutoff of a space, from how many rows it has in a probe that is made larger and smaller.

    Of edges, it has to be that of each pair of species.
    """
    at = next(i for i, leaf in enumerate(leaves) if leaf.space == space)
    dim = leaves[at].spaces.index(space)
    pairs = find(structure, None, 1.3 * known[1])
    lengths = vectors_of(structure, pairs).norm(dim=1)

    def rows(scale: float) -> int:
        """The rows in the probe at another size."""
        scaled = probe.copy()
        scaled.set_cell(probe.cell * scale)
        scaled.positions = probe.positions * scale
        call = ask(scaled, False)
        return call.model.flatten(call.graph)[0][at].tensor.shape[dim]

    def ends(limit: float, length: float) -> bool:
        """True if a pair of this length in the probe has rows just below the limit, and none just above it."""
        return rows(limit / length * (1 - 2 * EXACT)) > rows(limit / length * (1 + 2 * EXACT))

    def nearest(limit: float, chosen: Tensor) -> float:
        return float(chosen[(chosen - limit).abs().argmin()])

    def for_all_species(limit: float) -> float:
        species = structure.numbers[torch.stack([pairs.first, pairs.second])].sort(0).values
        kinds, kind = species.unique(dim=1, return_inverse=True)
        for at, pair in enumerate(kinds.T.tolist()[: MOST_PAIRS if edges else 0]):
            if not ends(limit, nearest(limit, lengths[kind == at])):
                raise NoRecipeError(
                    f"atoms of species {pair[0]} and {pair[1]} have no edges up to {limit:g} A as others do"
                )
        return limit

    low, high = known
    for digits in range(4):
        guess = round((low + high) / 2, digits)
        if low <= guess <= high and ends(guess, nearest(guess, lengths)):
            return for_all_species(guess)
    longest = float(lengths[lengths <= low].max())  # the first pair to leave when the probe grows
    smaller, larger = 1.0, high / longest * (1 + EXACT)
    before = rows(smaller)
    while larger - smaller > EXACT:
        middle = (smaller + larger) / 2
        smaller, larger = (smaller, middle) if rows(middle) < before else (middle, larger)
    found = longest * (smaller + larger) / 2
    if not low * (1 - EXACT) <= found <= high * (1 + EXACT):
        raise NoRecipeError(f"the cutoff of {space} is not between {low:.4f} and {high:.4f} A everywhere")
    return for_all_species(found)
