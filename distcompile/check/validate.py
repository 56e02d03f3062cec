"""Hold a compiled model against the stock one: on the example, and on a smaller graph cut out of it.

The smaller graph is what catches a size that was baked into the captured graph in silence. It is made without
knowing the model: a cluster of atoms is kept, with every row that points at kept rows only, and renumbered. Which
elements of the user's tensors are row numbers is read off by running the index program on codes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ValidationError
from ..ir import Placed, Space
from ..ir.sizes import SMALLEST_SPACE
from ..ir.tree import Leaf
from ..passes.spaces.provenance import Elements
from ..runtime.execution.precision import precision

RELATIVE = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Allowed difference relative to the largest value; float32 models differ by this much between two summation orders."""
CHECKED = 64
"""Atoms of the graph on which a large example's program is checked: the stock model on all atoms may not fit."""
UNDER_AUTOCAST = 5e-2
"""The allowed difference where autocast rounds intermediates to 8 or 11 bits, whatever the type of the results."""
CANCELLED = 100.0
"""How much more of a small result the error of radial functions may be."""
ABSOLUTE = {torch.float64: 1e-10, torch.float32: 2e-4}


def coarsest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The least precise type of numbers among a model's inputs and results, in which it computes."""
    found = [t.dtype for t in tensors if t.is_floating_point()]
    return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)


def compare(
    found: Sequence[Leaf], expected: Sequence[Leaf], where: str, given: Sequence[Leaf] = (), error: float = 0.0
) -> None:
    """Raise `ValidationError` if two results of a model for the inputs `given` differ by more than rounding.

    With an `error` that radial functions may have, by more than that: where large contributions cancel, it counts more.
    """
    dtype = coarsest([leaf.tensor for leaf in (*given, *expected)])
    for ours, stock in zip(found, expected, strict=True):
        a, b = ours.tensor.detach(), stock.tensor.detach()
        if a.shape != b.shape:
            raise ValidationError(
                f"result{stock.path} has shape {tuple(a.shape)}, the stock model gives {tuple(b.shape)} {where}: "
                "a size was baked in while capturing. Use sizes of tensors (x.shape[0]) in the model."
            )
        if not b.is_floating_point():
            same, worst = torch.equal(a, b), 0.0
        else:
            both = a.isnan() & b.isnan()  # a mean over nothing is NaN in both
            a, b = a.masked_fill(both, 0), b.masked_fill(both, 0)
            worst = float((a - b).abs().max()) if b.numel() else 0.0
            scale = float(b.abs().max()) if b.numel() else 0.0
            relative, absolute = RELATIVE.get(dtype, 1e-2), ABSOLUTE.get(dtype, 1e-2)
            if precision():
                relative, absolute = UNDER_AUTOCAST, 1e-2
            relative, absolute = relative + CANCELLED * error, absolute + error
            same = worst <= relative * scale + absolute
        if not same:
            raise ValidationError(
                f"result{stock.path} differs from the stock model by {worst:.3g} {where}. "
                "The captured graph does not hold for this graph: look for values that the model computes in Python, "
                "caches from an earlier call, or draws at random, and for a fact or a rule of an operator that you "
                "registered and that says more than is true."
            )


def gradients(results: Sequence[Leaf], sources: Sequence[Leaf]) -> list[Leaf]:
    """The gradient of all results together, each with another weight, by every tensor that they may depend on."""
    carrying = [r.tensor for r in results if r.tensor.requires_grad and r.tensor.is_floating_point()]
    by = [s for s in sources if s.tensor.requires_grad]
    if not carrying or not by:
        return []
    weights = [torch.linspace(-0.5, 1.5, r.numel(), dtype=r.dtype, device=r.device).reshape(r.shape) for r in carrying]
    found = torch.autograd.grad(carrying, [s.tensor for s in by], weights, allow_unused=True)
    each = zip(by, found, strict=True)
    return [Leaf(f"'s gradient by {s.path}", torch.zeros_like(s.tensor) if g is None else g) for s, g in each]


def smaller_graph(program: Placed, leaves: Sequence[Leaf], values: Sequence[Any]) -> list[Tensor] | None:
    """The leaves of the example without some of its atoms; None if they cannot be made.

    Args:
        program: the compiled program.
        leaves: the example's tensors.
        values: what the index program returned for them.
    """
    targets = _targets(program, leaves)
    spaces = {s.symbol: s for s in program.spaces if s.sharded}
    pointers = [p for p in program.pointers if p.source.sharded and p.target.sharded]
    rows = {p.name: values[program.inputs[p.input].source].long().cpu() for p in pointers}
    decoded = {p.origin for p in pointers if p.name in targets}
    if any(p.origin not in decoded and not p.identity for p in pointers):
        return None
    sizes = _sizes(program, leaves)
    atoms = program.spaces[0]
    if sizes[atoms.name] <= SMALLEST_SPACE:
        return None
    keep = {s.name: torch.ones(sizes[s.name], dtype=torch.bool) for s in spaces.values() if not s.blocks}
    keep[atoms.name] = _cluster(sizes[atoms.name], [rows[p.name] for p in pointers if p.target == atoms])
    changed = True
    while changed:
        changed = False
        for p in pointers:
            reached = p.by_rows(_kept(keep, p.target)[rows[p.name]]).all(1)
            blocks = p.source.blocks or (p.source,)
            for block, part in zip(blocks, reached.split([sizes[b.name] for b in blocks]), strict=True):
                changed |= bool((keep[block.name] & ~part).any())
                keep[block.name] &= part
    if any(int(k.sum()) < SMALLEST_SPACE for k in keep.values()):
        return None
    keep |= {s.name: _kept(keep, s) for s in spaces.values()}
    numbers = {name: k.cumsum(0) - 1 for name, k in keep.items()}
    counts = {sizes[name]: int(k.sum()) for name, k in reversed(keep.items())}  # of equal sizes, the first space counts
    cut = []
    for i, (leaf, shape) in enumerate(zip(leaves, program.captured.sizes, strict=True)):
        tensor = leaf.tensor.detach().clone().cpu()
        flat = tensor.reshape(-1)
        for space, where in targets[""].get(i, {}).items():
            flat[where] = numbers[space][flat[where].long()].to(flat.dtype)
        tensor = flat.reshape(tensor.shape)
        if all(size.is_Integer for size in shape) and i not in targets[""] and _is_integer(tensor):
            # num_atoms = [15], ptr = [0, 15]
            tensor = tensor.apply_(lambda n: counts.get(n, n))
        for dim, size in enumerate(shape):
            found = spaces.get(program.size(size))
            if found is not None:
                tensor = tensor.index_select(dim, keep[found.name].nonzero().flatten())
        cut.append(tensor.to(leaf.tensor.device).requires_grad_(leaf.tensor.requires_grad))
    return cut


def _kept(keep: dict[str, Tensor], space: Space) -> Tensor:
    """The rows of a space that are kept; for a joined list, those of its blocks."""
    return torch.cat([keep[block.name] for block in space.blocks or (space,)])


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def _cluster(n_atoms: int, pointers: Sequence[Tensor]) -> Tensor:
    """At most two thirds of the atoms and at most `CHECKED` of them, neighbours of neighbours of one atom."""
    wanted = max(min(n_atoms * 2 // 3, CHECKED), SMALLEST_SPACE)
    found = torch.zeros(n_atoms, dtype=torch.bool)
    order = [0]
    pairs = [(a, b) for a in pointers for b in pointers if a is not b and a.shape == b.shape and a.dim() == 1]
    found[0] = True
    for atom in order:
        if len(order) >= wanted:
            break
        near = torch.cat([b[a == atom] for a, b in pairs]).unique() if pairs else torch.arange(n_atoms)
        for new in near[~found[near]].tolist()[: wanted - len(order)]:
            found[new] = True
            order.append(new)
    return found


def _sizes(program: Placed, leaves: Sequence[Leaf]) -> dict[str, int]:
    sizes = {}
    for leaf, shape in zip(leaves, program.captured.sizes, strict=True):
        for size, n in zip(shape, leaf.tensor.shape, strict=True):
            space = program.space_of(program.size(size))
            if space is not None:
                sizes[space.name] = n
    joined = {s.name: sum(sizes[block.name] for block in s.blocks) for s in program.spaces if s.blocks}
    return sizes | joined


def _targets(program: Placed, leaves: Sequence[Leaf]) -> dict[str, Any]:
    """The elements of the leaves that are row numbers, and the spaces that these are of.

    Returns:
        Per decoded pointer an entry; under "" per leaf and space the flat positions of its row numbers.
    """
    found: dict[str, Any] = {"": {}}
    elements = Elements(program, [leaf.tensor for leaf in leaves])
    for pointer in program.pointers:
        flat = elements.of(program.inputs[pointer.input].source)
        if flat is None:
            continue  # computed from values, not moved: not an element of any leaf
        found[pointer.name] = True
        leaf_of = torch.searchsorted(torch.tensor(elements.starts), flat, right=True) - 1
        for i in leaf_of.unique().tolist():
            per_space = found[""].setdefault(i, {})
            before = per_space.get(pointer.target.name, flat[:0])
            per_space[pointer.target.name] = torch.cat([before, flat[leaf_of == i] - elements.starts[i]]).unique()
    return found


def warn_unchecked(reason: str) -> None:
    """Tell the user that the check at another size was not made."""
    warnings.warn(f"distcompile could not check the program at a second size: {reason}", stacklevel=3)
