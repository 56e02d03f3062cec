"""Values of which each row is made of the same row of the graph's integers, and of weights.

    embedding(table, species)       mm(one_hot(species).to(float), u)       cos(species / 7)

There are few different rows of them, so a later pass computes them once for each (`spaces.once_per_kind`), and work on
them costs next to nothing. Before spaces are known, the rows are those of the first dimension.
"""

from __future__ import annotations

import torch
from torch import fx

from ...ir import Normal
from ...ir.operators import facts
from ...rules.indexing import accesses


def is_from_integers(program: Normal, value: fx.Node) -> bool:
    """True if the rows of a tensor are made so. The answer may be false where the later pass finds that they are."""
    rows = program.shape(value)[0]
    if rows.is_Integer:
        return False
    pending, seen, found = [value], {value}, False
    while pending:
        node = pending.pop()
        tensor = node.meta.get("val")
        if not isinstance(tensor, torch.Tensor) or node.op == "get_attr":
            continue
        shape = program.shape(node)
        has_rows = len(shape) > 0 and shape[0] == rows
        if has_rows and not (tensor.is_floating_point() or tensor.is_complex()):
            found = True
            continue
        if node.op == "placeholder" or not (has_rows or all(size.is_Integer for size in shape)):
            return False
        if has_rows and not _is_row_by_row(program, node):
            return False
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        pending += new
    return found


def _is_row_by_row(program: Normal, node: fx.Node) -> bool:
    """True if no operand of an operator mixes the rows of its result: those of a table of the model are other rows."""
    row = facts(node)
    if row.rows is not None:
        tables = [program.shape(access.table)[access.dim] for access in accesses(node)]
        return row.rows.kind == "gather" and all(size.is_Integer for size in tables)
    return bool(
        row.pointwise or row.view or row.reshape or row.moves or row.fill is not None or row.product is not None
    )
