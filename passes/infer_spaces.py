"""Pass 7: find the index spaces and the pointers between them.

    x[sender]: x is [s4, 3], y[sender]: y is [s9, 64]   =>  s4 and s9 are one space
    sender: [s7], x[sender]: [s7, 3]                    =>  sender points from space s7 to space s4

Two sizes are one space if a guard made them so while tracing (broadcast, comparison), or if one pointer runs over
tables of both. A value used both as a pointer and as data becomes two inputs, since pointers are renumbered.
A table may also be as long as another size says (``s7 - 1`` structures between s7 offsets); every rank has it whole.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from typing import NoReturn

import sympy
import torch
from torch import Tensor, fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ..errors import CaptureError, NoIndexSpaceError
from ..ir import Access, Input, Pointer, Program, Range, Space, copy_graph, replace_graph
from ..provenance import Elements
from ..rules.base import user_line
from ..rules.indexing import INDEX_VIEWS, accesses
from ..runtime.checks import distinct_rows
from ..sizes import SMALLEST_SPACE
from .joined_spaces import joined_spaces, terms

aten = torch.ops.aten

_CASTS = {aten._to_copy.default, distinct_rows}


def infer_spaces(program: Program) -> Program:
    """Return `program` with `spaces` and `pointers`, one input per role, and sizes named by space.

    Raises:
        CaptureError: an index runs over rows whose number was baked into the graph, or there are no atoms.
    """
    module, _ = copy_graph(program.graph)
    inputs = {i.name: i for i in program.inputs}
    found = [
        (access, root)
        for node in module.graph.nodes
        for access in accesses(node)
        if (root := pointer_root(access.index)) is not None
    ]
    origins = _Origins(program)

    merged = _merge(program, found, inputs, origins)
    program = dataclasses.replace(program, merged=(*program.merged, *merged.items()))

    targets: dict[fx.Node, sympy.Expr] = {}
    fixed: dict[fx.Node, Access] = {}
    for access, root in found:
        size = program.shape(access.table)[access.dim]
        if not size.is_Integer:
            targets[root] = size
        elif inputs[root.name].kind == "rows":
            fixed[root] = access
            if size >= SMALLEST_SPACE and access.table.op == "placeholder":
                _baked(program, access, inputs[root.name])
    # How many kinds of something there are in the graph may be another number than there are in a table of the model.
    both = [root for root in targets if root in fixed]
    for root in both:
        if not _depends_on_values(targets[root]):
            _baked(program, fixed[root], inputs[root.name])
    spaces = _spaces(program, module, targets, inputs)
    for root in both:
        if targets[root] in _divided(spaces):
            _baked(program, fixed[root], inputs[root.name])
    spaces += joined_spaces(program, module.graph, spaces, targets.values())
    program = dataclasses.replace(program, spaces=spaces, ranges=_ranges(program, found, inputs, _divided(spaces)))
    return _with_pointers(program, module, targets, inputs, origins)


def _depends_on_values(size: sympy.Expr) -> bool:
    return all(symbol_is_type(symbol, SymT.UNBACKED_INT) for symbol in size.free_symbols)


def pointer_root(index: fx.Node) -> fx.Node | None:
    """The input that an index is a view of; None for constants."""
    while index.op == "call_function" and index.target in INDEX_VIEWS:
        index = index.args[0]  # type: ignore[assignment]
    return index if index.op == "placeholder" else None


class _Origins:
    """Names outputs of the index program so that casts of one pointer share a name."""

    def __init__(self, program: Program) -> None:
        assert program.index_program is not None
        (output,) = [n for n in program.index_program.graph.nodes if n.op == "output"]
        self._outputs: tuple[fx.Node, ...] = output.args[0]  # type: ignore[assignment]

    def node(self, source: int) -> fx.Node:
        node = self._outputs[source]
        while node.target in _CASTS:
            node = node.args[0]  # type: ignore[assignment]
        return node

    def name(self, source: int) -> str:
        return self.node(source).name

    def is_identity(self, source: int) -> bool:
        node = self.node(source)
        if node.target is aten.arange.default:
            return True
        starts_at_0 = node.target in (aten.arange.start, aten.arange.start_step) and node.args[0] == 0
        return bool(starts_at_0 and (len(node.args) < 3 or node.args[2] == 1))


def _merge(
    program: Program, found: list[tuple[Access, fx.Node]], inputs: dict[str, Input], origins: _Origins
) -> dict[sympy.Symbol, sympy.Expr]:
    """Union the sizes of all tables that one pointer runs over."""
    parent: dict[sympy.Symbol, sympy.Expr] = {}

    def find(size: sympy.Expr) -> sympy.Expr:
        while size.free_symbols & parent.keys():
            size = size.xreplace(parent)
        return size

    first: dict[str, sympy.Expr] = {}
    names = _names(program, inputs, origins)
    for access, root in found:
        size = program.shape(access.table)[access.dim]
        given = inputs[root.name]
        if size.is_Integer or given.kind != "rows":
            continue
        tables, rows = [size], program.shape(root)[0]
        if origins.is_identity(given.source) and rows.is_Symbol:
            tables.append(rows)  # row i of one is row i of the other
        for table in tables:
            name = names.get(root.name, origins.name(given.source))
            a, b = find(first.setdefault(name, table)), find(table)
            if a != b and b.is_Symbol and b not in a.free_symbols:
                parent[b] = a
            elif a != b and a.is_Symbol and a not in b.free_symbols:
                parent[a] = b
            elif a != b:
                raise CaptureError(
                    f"{given.label} points at rows of a table of {a} rows and at rows of one of {b}, which cannot be "
                    f"the same number.\n  {user_line(access.node)}\nGive tables that one index is for one length."
                )
    return {symbol: find(symbol) for symbol in parent}


def _names(program: Program, inputs: dict[str, Input], origins: _Origins) -> dict[str, str]:
    """One name for all inputs that have row numbers of the graph in common: they point into the same rows."""
    elements = Elements(program, [leaf.tensor for leaf in program.capture.leaves], chosen=True)
    names: dict[str, str] = {}
    known: list[tuple[Tensor, str]] = []
    for name, given in inputs.items():
        codes = elements.of(given.source) if given.kind == "rows" else None
        if codes is None or not len(codes):
            continue
        names[name] = next((n for c, n in known if bool(torch.isin(codes, c).any())), origins.name(given.source))
        known.append((codes, names[name]))
    return names


def _divided(spaces: tuple[Space, ...]) -> set[sympy.Expr]:
    return {s.symbol for s in spaces if s.sharded}


def _ranges(
    program: Program, found: list[tuple[Access, fx.Node]], inputs: dict[str, Input], divided: set[sympy.Expr]
) -> tuple[Range, ...]:
    """What looks up rows of tables that are whole on every rank."""
    ranges = set()
    for access, root in found:
        given, rows = inputs[root.name], program.shape(access.table)[access.dim]
        if given.kind == "rows" and rows not in divided:
            ranges.add(Range(given.source, rows, given.label, access.node.target is aten.index.Tensor))
    return tuple(sorted(ranges, key=str))


def _baked(program: Program, access: Access, given: Input) -> NoReturn:
    """Refuse a table whose number of rows is the example's, not the graph's."""
    rows = program.shape(access.table)[access.dim]
    raise CaptureError(
        f"A number of rows ({rows}) was baked into the captured graph, although {given.label} points at rows whose "
        f"number varies.\n  {user_line(access.node)}\n"
        "Use an example with at least 4 rows in every index space, and take sizes from tensor.shape: numbers that "
        "went through Python (int(), .item(), len() of a list) are the example's."
    )


def _spaces(
    program: Program, module: fx.GraphModule, targets: dict[fx.Node, sympy.Expr], inputs: dict[str, Input]
) -> tuple[Space, ...]:
    """Every symbolic size that is reached from the atoms, named for people."""
    links: dict[sympy.Expr, dict[sympy.Expr, set[str]]] = defaultdict(lambda: defaultdict(set))
    alone = []  # tables that are pointed into by rows of their own only: a matrix of neighbours
    lists = {size for root in targets for size in _varying(program, root) if len(_varying(program, root)) == 1}
    for root, target in targets.items():
        rows = [size for size in program.shape(root) if size.is_Symbol]
        if target in rows:  # other dimensions are columns, however many a graph has
            alone.append(target)
            continue
        varying = _varying(program, root)
        for size in [size for size in varying if size in lists] or varying[:1]:  # others are columns here, too
            ends = 1 + any(n not in (1, size) for n in program.shape(root))  # one pointer may hold both ends
            for source, part in itertools.product(terms(size) or (), terms(target) or (target,)):
                if source != part:
                    links[source][part] |= {f"{root.name} {end}" for end in range(ends)}
    atoms = _atoms(links, alone, program)
    names: dict[sympy.Expr, str] = {atoms: "atoms"}
    pending = [s for s in links if s != atoms]
    while pending:
        # The space with the fewest pointers to spaces that have no name yet comes next.
        ready = [s for s in pending if any(t in names for t in links[s])]
        if not ready:
            break
        chosen = min(ready, key=lambda s: sum(t not in names for t in links[s]))
        pending.remove(chosen)
        names[chosen] = _unused(_name(links[chosen], names), names)
    above = {t for s in names for t in links.get(s, {}) if t not in names}
    spaces = [Space(name, symbol) for symbol, name in names.items()]
    spaces += [Space(_unused("graphs", names), symbol, sharded=False) for symbol in above]
    return tuple(spaces)


def _varying(program: Program, root: fx.Node) -> list[sympy.Expr]:
    """The sizes of an index that are not the same for all graphs."""
    return [size for size in program.shape(root) if not size.is_Integer]


def _atoms(
    links: dict[sympy.Expr, dict[sympy.Expr, set[str]]], alone: list[sympy.Expr], program: Program
) -> sympy.Expr:
    """The space that another space points into twice (both ends of an edge) and that is no such space itself.

    Without such, the space that another one points into at all, or that points into itself.
    """
    double = [t for s in links for t, via in links[s].items() if len(via) > 1]
    sinks = [t for t in double if not any(len(via) > 1 for via in links.get(t, {}).values())]
    candidates = sinks or double or [t for t in alone if t.is_Symbol]
    candidates = candidates or [t for s in links for t in links[s] if not links.get(t)]
    if not candidates:
        sizes = ", ".join(
            f"{leaf.path} {tuple(leaf.tensor.shape)}" for leaf in program.capture.leaves if leaf.tensor.dim()
        )
        raise NoIndexSpaceError(
            "No index space was found: nothing in the graph gathers rows through an input of varying size.\n"
            f"  inputs: {sizes}\n{_fixed(program)}"
            "The example needs at least 4 atoms and 4 edges, and the model must read its edges from the graph."
        )
    return max(candidates, key=candidates.count)


def _fixed(program: Program) -> str:
    """The inputs whose sizes became numbers while the model was traced, in a sentence; nothing if there are none."""
    leaves = zip(program.capture.leaves, program.capture.sizes, strict=True)
    fixed = [
        f"{n} of {leaf.path}"
        for leaf, sizes in leaves
        for n, size in zip(leaf.tensor.shape, sizes, strict=True)
        if n >= SMALLEST_SPACE and size.is_Integer
    ]
    if not fixed:
        return ""
    return (
        f"Sizes that the model, or an operator that it uses, took for fixed: {', '.join(fixed)}. Some operators do so "
        "under torch.func (prod under jacrev): write these in another way.\n"
    )


def _name(links: dict[sympy.Expr, set[str]], names: dict[sympy.Expr, str]) -> str:
    known = {names[t]: len(via) for t, via in links.items() if t in names}
    if any(n != "atoms" and count > 1 for n, count in known.items()):
        return "angles"
    if known.get("atoms", 0) > 1:
        return "edges"
    if any(n.startswith("edges") for n in known):
        return "bonds"
    return "rows"


def _unused(name: str, names: dict[sympy.Expr, str]) -> str:
    taken = set(names.values())
    return name if name not in taken else next(f"{name}{i}" for i in range(2, 99) if f"{name}{i}" not in taken)


def _with_pointers(
    program: Program,
    module: fx.GraphModule,
    targets: dict[fx.Node, sympy.Expr],
    inputs: dict[str, Input],
    origins: _Origins,
) -> Program:
    """Split inputs by role and list them in the order of the placeholders."""
    spaces = {s.symbol: s for s in program.spaces}
    ordered: list[Input] = []
    pointers: list[Pointer] = []
    sized: dict[sympy.Symbol, fx.Node] = {}
    for node in [n for n in module.graph.nodes if n.op == "placeholder"]:
        given = inputs[node.name]
        if given.kind == "size":
            symbol = program.size(node.meta["val"])
            if symbol in sized:  # two sizes that turned out to be one space
                node.replace_all_uses_with(sized[symbol])
                module.graph.erase_node(node)
                continue
            sized[symbol] = node
            space = spaces.get(symbol)
            if space is None:
                space = Space(f"size_{symbol}", symbol, sharded=False)
                spaces[symbol] = space
            node._rename(f"n_{space.name}")
            node.target = node.name
            ordered.append(dataclasses.replace(given, name=node.name, space=space))
            continue
        target = spaces.get(targets.get(node, sympy.Integer(0)))
        if node in targets and any(_is_made_of_rows(size, spaces) for size in program.shape(node)):
            _no_rows(program, node, given, "is used as an index")
        if given.kind != "rows" or target is None or not target.sharded:
            ordered.append(given)
            continue
        over = next((dim for dim, size in enumerate(program.shape(node)) if size in spaces), None)
        if over is None:
            _no_rows(program, node, given, f"points at rows of {target}")
        source, several = spaces[program.shape(node)[over]], any(n != 1 for n in _others(program.shape(node), over))
        name, identity = origins.name(given.source), source == target and origins.is_identity(given.source)
        pointers.append(
            Pointer(node.name, source, target, len(ordered), name, identity=identity, dim=over, several=several)
        )
        ordered.append(dataclasses.replace(given, kind="pointer", space=target))
        if _used_as_data(node):
            with module.graph.inserting_after(node):
                twin = module.graph.placeholder(f"{node.name}_values")
            twin.target = twin.name
            twin.meta = dict(node.meta)
            _data_uses_to(node, twin)
            ordered.append(dataclasses.replace(given, name=twin.name))
    _select_rows(module.graph, {p.name for p in pointers})
    return replace_graph(
        program, module, inputs=tuple(ordered), pointers=tuple(pointers), spaces=tuple(spaces.values())
    )


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
    """Whether a size is computed from the size of a divided space, and is not that of a joined list."""
    if size.is_Symbol or size in spaces:
        return False
    return any(s in spaces and spaces[s].sharded for s in size.free_symbols)


def _no_rows(program: Program, node: fx.Node, given: Input, what: str) -> NoReturn:
    """Refuse an index with a row for nothing that is divided: a part of a space, or several in one list."""
    lines = list(dict.fromkeys(user_line(user) for user in node.users))
    raise CaptureError(
        f"{given.label} {what} but is no list of rows of anything: its shape is "
        f"{tuple(map(str, program.shape(node)))}.\n  {lines[0]}\n"
        "Pick rows by a graph input or a mask. Lists that the model joins must be joined of whole lists (all edges, "
        "all edges the other way round, all atoms); what they lack has to be joined in the graph that it is given."
    )


def _others(shape: tuple[sympy.Expr, ...], dim: int) -> tuple[sympy.Expr, ...]:
    return shape[:dim] + shape[dim + 1 :]


def _indexes(user: fx.Node, node: fx.Node) -> bool:
    return any(a.index is node for a in accesses(user))


def _used_as_data(node: fx.Node) -> bool:
    return any(
        not _indexes(user, node) and not (user.target in INDEX_VIEWS and not _used_as_data(user)) for user in node.users
    )


def _data_uses_to(node: fx.Node, twin: fx.Node) -> None:
    for user in list(node.users):
        if user.target in INDEX_VIEWS and not _used_as_data(user):
            continue
        if not _indexes(user, node):
            user.replace_input_with(node, twin)
