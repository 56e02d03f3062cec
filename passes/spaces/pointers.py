"""The pointers, once the spaces are known.

rows sender: [s7]        =>    pointer sender: edges -> atoms, and sender_values where it is used as data
size s4                  =>    n_atoms, the rank's own
x[:, sender]             =>    index_select(x, 1, sender)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import sympy
import torch
from torch import fx

from ...ir import Input, Placed, Pointer, Space, Split, grown
from ...ir.operators import facts, pointer_root, row_numbers
from ...ir.sizes import size_nodes
from ...ir.writer import described
from ...rules.indexing import accesses

aten = torch.ops.aten


class Origins:
    """Names outputs of the index program so that casts of one pointer share a name."""

    def __init__(self, program: Split) -> None:
        (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
        self._outputs: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]

    def node(self, source: int) -> fx.Node:
        node = self._outputs[source]
        while facts(node).same_values:
            node = node.args[0]  # type: ignore[assignment]
        return node

    def name(self, source: int) -> str:
        return self.node(source).name

    def is_identity(self, source: int) -> bool:
        return row_numbers(self.node(source)) == (0, 1)


def with_pointers(
    program: Split,
    module: fx.GraphModule,
    found: Iterable[Space],
    targets: dict[fx.Node, sympy.Expr],
    inputs: dict[str, Input],
    origins: Origins,
) -> Placed:
    """A program of the spaces that were found, with one input for each role, in the order of the placeholders."""
    roles = _Roles(program, module.graph, found, targets, origins)
    for node in [n for n in module.graph.nodes if n.op == "placeholder"]:
        roles.add(node, inputs[node.name])
    for node in roles.made:
        _compute_size(program, module.graph, node, roles.sized)
    _select_rows(module.graph, {p.name for p in roles.pointers})
    return grown(
        program,
        Placed,
        graph=module,
        inputs=tuple(roles.inputs),
        pointers=tuple(roles.pointers),
        spaces=tuple(roles.spaces.values()),
        ranges=(),
        may_be_less=frozenset(),
    )


class _Roles:
    """The role of each input: a size, a pointer, or values."""

    def __init__(
        self,
        program: Split,
        graph: fx.Graph,
        found: Iterable[Space],
        targets: dict[fx.Node, sympy.Expr],
        origins: Origins,
    ) -> None:
        self._program, self._graph, self._targets, self._origins = program, graph, targets, origins
        self.spaces = {s.symbol: s for s in found}
        self.inputs: list[Input] = []
        self.pointers: list[Pointer] = []
        self.sized: dict[sympy.Symbol, fx.Node] = {}
        """By size, the input that holds it."""
        self.made: list[fx.Node] = []
        """Sizes that a rank computes from those of its rows."""

    def add(self, node: fx.Node, given: Input) -> None:
        """Find the role of one input."""
        if given.kind == "size":
            self._add_size(node, given)
            return
        shape = self._program.shape(node) if given.kind == "rows" else ()
        target = self.spaces.get(self._targets.get(node, sympy.Integer(0)))
        over = _rows_of(shape, self.spaces)
        if target is None or not target.sharded or over is None:
            self.inputs.append(given)
            return
        source, several = self.spaces[shape[over]], any(n != 1 for n in _others(shape, over))
        name = self._origins.name(given.source)
        identity = source == target and self._origins.is_identity(given.source)
        position = len(self.inputs)
        self.pointers.append(
            Pointer(node.name, source, target, position, name, identity=identity, dim=over, several=several)
        )
        self.inputs.append(dataclasses.replace(given, kind="pointer", space=target))
        if _used_as_data(node):
            self._add_values(node, given)

    def _add_size(self, node: fx.Node, given: Input) -> None:
        symbol = self._program.size(node.meta["val"])
        if _is_made_of_rows(symbol, self.spaces):
            self.made.append(node)
            return
        if symbol in self.sized:  # two sizes that turned out to be one space
            node.replace_all_uses_with(self.sized[symbol])
            self._graph.erase_node(node)
            return
        self.sized[symbol] = node
        space = self.spaces.setdefault(symbol, Space(f"size_{symbol}", symbol, sharded=False))
        node._rename(f"n_{space.name}")
        node.target = node.name
        self.inputs.append(dataclasses.replace(given, name=node.name, space=space))

    def _add_values(self, node: fx.Node, given: Input) -> None:
        """The integers of a pointer once more, as values of the whole graph."""
        with self._graph.inserting_after(node):
            twin = described(self._graph.placeholder(f"{node.name}_values"), like=node)
        twin.target = twin.name
        _data_uses_to(node, twin)
        self.inputs.append(dataclasses.replace(given, name=twin.name))


def _compute_size(program: Split, graph: fx.Graph, node: fx.Node, sized: dict[sympy.Symbol, fx.Node]) -> None:
    """Let a rank compute a size (such as one less than its rows) from its own sizes, not take the whole graph's."""
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        known = size_nodes(graph, program.size(node.meta["val"]), sized.get)
    node.replace_all_uses_with(known)
    graph.erase_node(node)


def _select_rows(graph: fx.Graph, pointers: set[str]) -> None:
    """Write ``x[:, p]`` as index_select, which copies whole rows: a pointer is never negative, as an index may be."""
    for node in graph.nodes:
        if node.target is not aten.index.Tensor:
            continue
        found = accesses(node)
        root = pointer_root(found[0].index)
        if len(found) == 1 and found[0].index.meta["val"].dim() == 1 and root is not None and root.name in pointers:
            node.target = aten.index_select.default
            node.args = (node.args[0], found[0].dim, found[0].index)


def _is_made_of_rows(size: sympy.Expr, spaces: dict[sympy.Expr, Space]) -> bool:
    """True if a size is computed from the size of a divided space, and is not that of a joined list."""
    if size.is_Symbol or size in spaces:
        return False
    return any(s in spaces and spaces[s].sharded for s in size.free_symbols)


def _rows_of(shape: tuple[sympy.Expr, ...], spaces: dict[sympy.Expr, Space]) -> int | None:
    """The dimension of an index that counts the rows of a space; None for a part of a space, or for several spaces."""
    if any(_is_made_of_rows(size, spaces) for size in shape):
        return None  # every rank is given all of it
    return next((dim for dim, size in enumerate(shape) if size in spaces), None)


def _others(shape: tuple[sympy.Expr, ...], dim: int) -> tuple[sympy.Expr, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _indexes(user: fx.Node, node: fx.Node) -> bool:
    return any(a.index is node for a in accesses(user))


def _used_as_data(node: fx.Node) -> bool:
    return any(
        not _indexes(user, node) and not (facts(user).shows_all and not _used_as_data(user)) for user in node.users
    )


def _data_uses_to(node: fx.Node, twin: fx.Node) -> None:
    for user in list(node.users):
        if facts(user).shows_all and not _used_as_data(user):
            continue
        if not _indexes(user, node):
            user.replace_input_with(node, twin)
