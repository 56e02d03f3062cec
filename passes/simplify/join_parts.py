"""Join what was taken apart.

    slice_backward(z, [n, 5], 1, 0, 2, 1) + slice_backward(x, [n, 5], 1, 2, 5, 1)  =>  cat([z, x], 1)

The gradient of a tensor that a model cut into parts (the irreducible representations of equivariant features, the
paths of a tensor product) arrives as one tensor of mostly zeros for each part, and all of them are added. The parts do
not overlap, so side by side they are the sum, exactly.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import torch
from torch import fx

from ...ir import Normal, replace_graph
from ...ir.graphs import copy_graph
from ...ir.writer import write
from .sums import replace_sum, roots_of_sums, summands

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class _Part:
    """A summand that is zero outside of ``start:end`` of one dimension."""

    value: fx.Node
    dim: int
    start: int
    end: int
    size: int
    """The size of the dimension."""
    like: fx.Node
    """The summand itself: its shape is that of the sum."""


def join_parts(program: Normal) -> Normal:
    """Return `program` with sums of padded parts as concatenations."""
    module, _ = copy_graph(program.graph)
    for root in roots_of_sums(module.graph):
        _join(root)
    module.graph.eliminate_dead_code()
    return replace_graph(program, module)


def _join(root: fx.Node) -> None:
    groups: dict[tuple[int, int], list[_Part]] = defaultdict(list)
    rest: list[fx.Node] = []
    for node in summands(root):
        part = _part(node)
        if part is None:
            rest.append(node)
        else:
            groups[part.dim, part.size].append(part)
    if all(len(parts) < 2 for parts in groups.values()):
        return
    graph = root.graph
    with graph.inserting_before(root):
        for parts in groups.values():
            rest += [_padded(graph, run) for run in _runs(parts)]
    replace_sum(root, rest)


def _part(node: fx.Node) -> _Part | None:
    """The part that a padded summand holds, if it is cut along a dimension of known size."""
    args: Any = node.args
    if node.target is aten.slice_backward.default:
        value, shape, dim, start, end, step = args
    elif node.target is aten.select_backward.default:
        value, shape, dim, start = args
        end, step = (start + 1 or shape[dim]) if isinstance(start, int) else None, 1  # -1 is the last, up to the end
    else:
        return None
    dim %= len(shape)
    size = shape[dim]
    if step != 1 or not all(isinstance(n, int) for n in (size, start, end)):
        return None
    start, end, _ = slice(start, end).indices(size)
    return _Part(value, dim, start, end, size, node) if start < end else None


def _runs(parts: list[_Part]) -> list[list[_Part]]:
    """Runs of parts that lie side by side. A part that overlaps begins a new run."""
    runs: list[list[_Part]] = []
    for part in sorted(parts, key=lambda p: (p.start, p.end)):
        fitting = next((run for run in runs if run[-1].end == part.start), None)
        if fitting is not None:
            fitting.append(part)
        else:
            runs.append([part])
    return runs


def _padded(graph: fx.Graph, run: list[_Part]) -> fx.Node:
    """The parts of a run side by side, in a tensor of the size of the sum."""
    first = run[0]
    if len(run) == 1:
        return first.like
    example = first.like.meta["val"]
    rows = [_with_dim(graph, part) for part in run]
    start, end = first.start, run[-1].end
    value = example.narrow(first.dim, 0, end - start)
    joined = write(graph, aten.cat.default, (rows, first.dim), like=first.like, value=value)
    if end - start == first.size:
        return joined
    shape = first.like.args[1]
    args = (joined, shape, first.dim, start, end, 1)
    return write(graph, aten.slice_backward.default, args, like=first.like)


def _with_dim(graph: fx.Graph, part: _Part) -> fx.Node:
    if part.like.target is aten.slice_backward.default:
        return part.value
    value = part.like.meta["val"].narrow(part.dim, 0, 1)
    return write(graph, aten.unsqueeze.default, (part.value, part.dim), like=part.like, value=value)
