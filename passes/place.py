"""Pass 9: give every value its placement.

    positions          [atoms, 3]
    index(positions, sender)   [edges, 3]
    sum(energies)      [] partial
    mul(energy, energy)        needs the whole energy: noted for `insert_all_reduces`

Every space-sized value holds the rank's own rows only, so all size arithmetic of the captured graph stays valid.
This pass only annotates. An operator without a rule that touches a distributed dimension is an error, never a guess.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, NoReturn

import sympy
import torch
from torch import fx

from ..errors import UnsupportedOp
from ..graphs import copy_graph
from ..ir import META, Dim, Placement, Program, Space, replace_graph
from ..rules import RULES, Context, Refused
from ..rules.base import named, unsupported, user_line
from ..rules.linear import passes_partial
from ..rules.pointwise import is_pointwise, pointwise

WHOLE = "distcompile_whole"
"""Key in ``node.meta``: names of the operands that this node needs whole although they are partial."""


def place(program: Program) -> Program:
    """Return `program` with a `Placement` in ``node.meta[META]`` of every node.

    Raises:
        UnsupportedOp: an operator touches a distributed dimension in a way that no rule covers.
    """
    module, _ = copy_graph(program.graph)
    context = Context(program)
    partial: set[fx.Node] = set()
    sharded: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "output":
            for result in node.all_input_nodes:
                _check_result(context, result)
            node.meta[META] = Placement()
            continue
        found = _place(context, node, partial, sharded)
        node.meta[META] = found
        each = placements(found)
        if any(p.partial for p in each):
            partial.add(node)
        if any(p.sharded for p in each):
            sharded.add(node)
    return replace_graph(program, module)


def _check_result(ctx: Context, node: fx.Node) -> None:
    """Results are put together row by row: each row of them must be of one length in all graphs, or a dimension."""
    for placement in placements(node.meta[META]):
        if any(isinstance(f, Space) and not f.sharded for dim in placement.dims for f in dim):
            raise unsupported(node, "a result with rows of varying length in one dimension", [_show(ctx, node)])


def _place(ctx: Context, node: fx.Node, partial: set[fx.Node], sharded: set[fx.Node]) -> Any:
    if node.op == "placeholder":
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return Placement(rule="size")
        dims = tuple(_input_dim(ctx, n) for n in value.shape)
        if sum(map(bool, dims)) > 1:
            _no_pairs(ctx, node, dims)
        return Placement(dims, rule="input")
    if node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target))
        return Placement(((),) * value.dim(), rule="constant")
    if node.target is operator.getitem:
        whole = node.args[0].meta[META]  # type: ignore[union-attr]
        return whole[node.args[1]] if isinstance(whole, tuple) else whole  # type: ignore[index]

    found = _by_rule(ctx, node, sharded)
    mine = [n for n in node.all_input_nodes if n in partial]
    if not mine:
        return found
    each = placements(found)
    summed = all(p.reduction == "sum" for n in mine for p in placements(n.meta[META]))
    if not summed or any(p.sharded for p in each) or not passes_partial(node, partial, sharded):
        node.meta[WHOLE] = tuple(n.name for n in mine)
        return found
    each = tuple(dataclasses.replace(p, partial=True) for p in each)
    return each if isinstance(found, tuple) else each[0]


def _no_pairs(ctx: Context, node: fx.Node, dims: tuple[Dim, ...]) -> NoReturn:
    """Refuse an input with a value for every pair of rows: of these a rank would have its own rows' pairs only."""
    label = next((i.label for i in ctx.program.inputs if i.name == node.name), node.name)
    lines = list(dict.fromkeys(user_line(user) for user in node.users))
    rows = " and ".join(str(f) for dim in dims for f in dim)
    raise UnsupportedOp(
        f"{label} has a value for every pair of {rows}, which cannot be divided among ranks.\n  {lines[0]}\n"
        "Give the pairs that matter as a list: an index of two rows, and a value for each of its columns."
    )


def placements(found: Any) -> tuple[Placement, ...]:
    """The placements of an operator's results, of one or of several."""
    return found if isinstance(found, tuple) else (found,)


def _input_dim(ctx: Context, size: Any) -> Dim:
    space = ctx.program.space_of(ctx.program.size(size))
    return (space,) if space is not None and space.sharded else ()


def _by_rule(ctx: Context, node: fx.Node, sharded: set[fx.Node]) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor | list | tuple):
        return Placement(rule="size")
    rule = pointwise if is_pointwise(node.target) else RULES.get(node.target)
    touches = any(n in sharded for n in node.all_input_nodes) or _has_rows(ctx, value)
    if not touches:
        values = value if isinstance(value, list | tuple) else [value]
        dims = tuple(
            Placement(((),) * (v.dim() if isinstance(v, torch.Tensor) else 0), rule="replicated") for v in values
        )
        return dims if isinstance(value, list | tuple) else dims[0]
    try:
        if rule is None:
            raise Refused("there is no placement rule for it")
        return _checked(ctx, node, named(rule(ctx, node), rule.__name__.rstrip("_")))
    except Refused as refusal:
        operands = [
            f"{n.name} {_show(ctx, n)}" for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)
        ]
        raise unsupported(node, str(refusal), operands) from None


def _has_rows(ctx: Context, value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    symbols = {s.symbol for s in ctx.program.spaces if s.sharded}
    return any(
        symbols & set(getattr(ctx.program.size(n), "free_symbols", ()))
        for v in values
        if isinstance(v, torch.Tensor)
        for n in v.shape
    )


def _checked(ctx: Context, node: fx.Node, found: Any) -> Any:
    """Hold a rule's answer against the symbolic shape: both must say the same of every dimension."""
    values = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    for place, value in zip(found if isinstance(found, tuple) else (found,), values, strict=True):
        if not isinstance(value, torch.Tensor):
            continue
        for dim, n in zip(place.dims, value.shape, strict=True):
            size = ctx.program.size(n)
            product = size
            for factor in dim:
                product = product / (factor.symbol if isinstance(factor, Space) else factor)  # type: ignore[union-attr]
            symbols = {s.symbol for s in ctx.program.spaces if s.sharded}
            if dim and place.partial:
                raise Refused("a sum over some rows of values that have a row for each of others")
            if not dim and symbols & size.free_symbols and size not in symbols:
                number = size.xreplace({s.symbol: sympy.Symbol(s.name) for s in ctx.program.spaces if s.sharded})
                raise Refused(
                    f"the model makes a list of {number} rows, which are none of the graph's (pairs that it looks for "
                    "itself? give them to it with the graph, if it takes them)"
                )
            if (dim and sympy.cancel(product) != 1) or (not dim and symbols & size.free_symbols):
                raise Refused(f"its result of shape {tuple(value.shape)} was placed as {place.dims}")
    return found


def _show(ctx: Context, node: fx.Node) -> str:
    found = node.meta.get(META)
    if not isinstance(found, Placement):
        return "(several)"
    shape = ctx.program.shape(node)
    parts = ["*".join(str(f) for f in d) if d else str(n) for d, n in zip(found.dims, shape, strict=True)]
    return "[" + ", ".join(parts) + "]" + (" partial" if found.partial else "")
