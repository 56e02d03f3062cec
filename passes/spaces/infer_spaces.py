"""Find the index spaces and the pointers between them.

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

from ...errors import CaptureError, NoIndexSpaceError
from ...ir import Access, Input, Placed, Range, Space, Split
from ...ir.graphs import copy_graph
from ...ir.lengths import multiples
from ...ir.operators import is_zero, pointer_root
from ...ir.sizes import SMALLEST_SPACE
from ...ir.user_code import user_line
from ...rules.indexing import accesses
from .joined_spaces import joined_spaces
from .largest_row import may_be_less, solved
from .pointers import Origins, with_pointers
from .provenance import Elements

aten = torch.ops.aten


def infer_spaces(program: Split) -> Placed:
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
    origins = Origins(program)

    merged = _merge(program, found, inputs, origins)
    less = may_be_less(program, module.graph, merged)
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
    _check_enough(program, found, inputs, origins, set(targets))
    # The number of kinds in the graph may be another one than that in a table of the model.
    both = [root for root in targets if root in fixed]
    for root in both:
        if not _depends_on_values(targets[root]):
            _baked(program, fixed[root], inputs[root.name])
    spaces = _spaces(program, targets, inputs, origins)
    for root in both:
        if targets[root] in _divided(spaces):
            _baked(program, fixed[root], inputs[root.name])
    spaces += joined_spaces(program, module.graph, spaces, targets.values())
    placed = with_pointers(program, module, spaces, targets, inputs, origins)
    return dataclasses.replace(placed, ranges=_ranges(placed, found, inputs), may_be_less=less)


def _check_enough(
    program: Split,
    found: list[tuple[Access, fx.Node]],
    inputs: dict[str, Input],
    origins: Origins,
    told: set[fx.Node],
) -> None:
    """Refuse an example of so few atoms that their number is taken for fixed: both ends of edges are among them.

    The other spaces that would be found (edges, for angles between them) would hold for this number of atoms only.
    """
    ends: dict[tuple[sympy.Expr, ...], set[str]] = defaultdict(set)
    for access, root in found:
        size, given = program.shape(access.table)[access.dim], inputs[root.name]
        few = size.is_Integer and 1 < size < SMALLEST_SPACE  # one row may be that of the only structure
        if few and given.kind == "rows" and _is_of_graph(access.table) and not is_zero(origins.node(given.source)):
            ends[program.shape(root)[0], size].add(origins.name(given.source))
    known = {program.shape(root)[0] for root in told}
    for (rows, size), names in ends.items():
        if len(names) > 1 and not rows.is_Integer and rows not in known:
            raise NoIndexSpaceError(
                f"No index space was found: lists of the graph point at {size} rows at both ends, too few to tell "
                f"their number from that of components.\n  inputs: {_sizes(program)}\n"
                "The example needs at least 4 atoms and 4 edges."
            )


def _is_of_graph(table: fx.Node) -> bool:
    """True if a table is computed from inputs of the graph, not from weights alone."""
    pending, seen = [table], {table}
    while pending:
        node = pending.pop()
        if node.op == "placeholder" and isinstance(node.meta["val"], Tensor):
            return True
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    return False


def _depends_on_values(size: sympy.Expr) -> bool:
    return all(symbol_is_type(symbol, SymT.UNBACKED_INT) for symbol in size.free_symbols)


def _merge(
    program: Split, found: list[tuple[Access, fx.Node]], inputs: dict[str, Input], origins: Origins
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
        lengths = [_length(root, 0), _length(access.table, access.dim)]
        if origins.is_identity(given.source) and rows.is_Symbol and lengths[0] == lengths[1]:
            tables.append(rows)  # row i of one is row i of the other
        for table in tables:
            name = names.get(root.name, origins.name(given.source))
            a, b = find(first.setdefault(name, table)), find(table)
            if (solution := solved(a, b)) is not None:
                parent |= solution
            elif a != b and b.is_Symbol and b not in a.free_symbols:
                parent[b] = a
            elif a != b and a.is_Symbol and a not in b.free_symbols:
                parent[a] = b
            elif a != b:
                raise CaptureError(
                    f"{given.label} points at rows of a table of {a} rows and at rows of one of {b}, which cannot be "
                    f"the same number.\n  {user_line(access.node)}\nGive tables that one index is for one length."
                )
    return {symbol: find(symbol) for symbol in parent}


def _length(node: fx.Node, dim: int) -> int | None:
    """The size in the example; None if it is not known."""
    n = node.meta["val"].shape[dim]
    return n if isinstance(n, int) else n.node.hint  # type: ignore[no-any-return]


def _names(program: Split, inputs: dict[str, Input], origins: Origins) -> dict[str, str]:
    """One name for all inputs that share row numbers of the graph: they point into the same rows."""
    elements = Elements(program, [leaf.tensor for leaf in program.captured.leaves], chosen=True)
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


def _ranges(program: Placed, found: list[tuple[Access, fx.Node]], inputs: dict[str, Input]) -> tuple[Range, ...]:
    """The lookups of rows in tables that are whole on every rank, with the row numbers that are allowed."""
    pointers, ranges = {p.name for p in program.pointers}, set()
    for access, root in found:
        given, rows = inputs[root.name], program.shape(access.table)[access.dim]
        if given.kind == "rows" and root.name not in pointers:
            ranges.add(Range(given.source, rows, given.label, access.node.target is aten.index.Tensor))
    return tuple(sorted(ranges, key=str))


def _baked(program: Split, access: Access, given: Input) -> NoReturn:
    """Refuse a table whose number of rows is the example's, not the graph's."""
    rows = program.shape(access.table)[access.dim]
    if program.captured.over_rows:
        raise NoIndexSpaceError(
            f"No index space was found: a function is mapped over rows at {program.captured.over_rows[0]} (vmap, "
            "jacrev, hessian), and torch's rules for batches take the number of other rows for fixed. "
            "distcompile.hessian takes second derivatives row by row instead."
        )
    loops = "".join(
        f"  It is read at {line}: a loop over rows, or something else that Python counts by a number of rows. Write it "
        "with tensors, or move it to a function of its own that returns indices.\n"
        for line in program.captured.loops[:1]
    )
    raise CaptureError(
        f"A number of rows ({rows}) was baked into the captured graph, although {given.label} points at rows whose "
        f"number varies.\n  {user_line(access.node)}\n{loops}"
        "Use an example with at least 4 rows in every index space, and take sizes from tensor.shape: numbers that "
        "went through Python (int(), .item(), len() of a list) are the example's."
    )


def _spaces(
    program: Split, targets: dict[fx.Node, sympy.Expr], inputs: dict[str, Input], origins: Origins
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
        if origins.is_identity(inputs[root.name].source):
            continue  # the first rows of a longer list
        varying = _varying(program, root)
        for size in [size for size in varying if size in lists] or varying[:1]:  # others are columns here, too
            ends = 1 + any(n not in (1, size) for n in program.shape(root))  # one pointer may hold both ends
            for source, part in itertools.product(multiples(size) or (), multiples(target) or (target,)):
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


def _varying(program: Split, root: fx.Node) -> list[sympy.Expr]:
    """The sizes of an index that are not the same for all graphs."""
    return [size for size in program.shape(root) if not size.is_Integer]


def _atoms(links: dict[sympy.Expr, dict[sympy.Expr, set[str]]], alone: list[sympy.Expr], program: Split) -> sympy.Expr:
    """The space that another one points into twice (both ends of an edge), and that points into none twice itself.

    If there is none, the space that another one points into at all, or that points into itself. Of several, one whose
    number of rows the graph gives, rather than values in it: edges that the model picks by their kind, and then once
    more by their direction, are pointed into twice, too.
    """
    double = [t for s in links for t, via in links[s].items() if len(via) > 1]
    sinks = [t for t in double if not any(len(via) > 1 for via in links.get(t, {}).values())]
    candidates = sinks or double or [t for t in alone if t.is_Symbol]
    candidates = candidates or [t for s in links for t in links[s] if not links.get(t)]
    if not candidates:
        raise NoIndexSpaceError(
            "No index space was found: nothing in the graph gathers rows through an input of varying size.\n"
            f"  inputs: {_sizes(program)}\n{_fixed(program)}"
            "The example needs at least 4 atoms and 4 edges, and the model must read its edges from the graph."
        )
    given = [t for t in candidates if not _depends_on_values(t)]
    return max(given or candidates, key=candidates.count)


def _sizes(program: Split) -> str:
    """The inputs with their shapes."""
    leaves = (leaf for leaf in program.captured.leaves if leaf.tensor.dim())
    return ", ".join(f"{leaf.path} {tuple(leaf.tensor.shape)}" for leaf in leaves)


def _fixed(program: Split) -> str:
    """The inputs whose sizes became numbers while the model was traced, in a sentence; empty if there are none."""
    leaves = zip(program.captured.leaves, program.captured.sizes, strict=True)
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
