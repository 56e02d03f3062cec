"""Which elements of the graph's integers a computed pointer holds.

    edge_index: [[1, 2, 3], [4, 5, 6]]      each integer of the graph replaced by a number of its own
    cat([edge_index, edge_index.flip(0)], 1)[0]  ->  [1, 2, 3, 4, 5, 6]

The index program is run on such codes, as far as it only moves elements about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...ir import Split
from ...ir.operators import facts, row_numbers

aten = torch.ops.aten


class Elements:
    """The codes of the integers that outputs of the index program are made of."""

    def __init__(self, program: Split, leaves: Sequence[Tensor], *, chosen: bool = False) -> None:
        """With `chosen`, a choice of rows by a mask or an order counts as if all rows had been picked."""
        self._program, self._module, self._chosen = program, program.index_program, chosen
        self.starts: list[int] = []
        """The first code of each leaf; codes of its elements follow in memory order."""
        codes, total = [], 1
        for leaf in leaves:
            self.starts.append(total)
            n = leaf.numel() if not leaf.is_floating_point() and leaf.dtype != torch.bool else 0
            codes.append(torch.arange(total, total + n).reshape(leaf.shape) if n else leaf.detach().cpu())
            total += n
        self._total = total
        placeholders = [n for n in self._module.graph.nodes if n.op == "placeholder"]
        self._known: dict[fx.Node, Any] = dict(zip(placeholders, codes, strict=True))
        (output,) = [n for n in self._module.graph.nodes if n.op == "output"]
        self._outputs: Any = output.args[0]

    def of(self, output: int) -> Tensor | None:
        """The codes in one output; None if it holds anything other than elements of the graph and row numbers."""
        try:
            value = self._evaluate(self._outputs[output])
        except (RuntimeError, IndexError):
            return None
        flat = value.reshape(-1).long().contiguous()
        if bool((flat < 0).any()) or bool((flat >= self._total).any()):
            return None
        return flat[flat > 0]

    def _evaluate(self, node: fx.Node) -> Any:
        if node in self._known:
            return self._known[node]
        if row_numbers(node) is not None and isinstance(node.meta["val"], Tensor):
            value: Any = torch.zeros([self._length(node)], dtype=torch.int64)  # the model's own, not the graph's
        elif node.op == "get_attr":
            value = getattr(self._module, str(node.target))
            value = value.cpu() if isinstance(value, Tensor) else value
        elif node.op == "call_function" and (picked := self._picked(node)) is not None:
            value = self._evaluate(picked)
        elif not (facts(node).moves or node.target is aten.sym_size.int or _by_constants(node)):
            raise RuntimeError("not a move")
        elif node.target is aten._to_copy.default:
            value = self._evaluate(node.args[0])  # type: ignore[arg-type]
        else:
            args: Any = fx.node.map_arg(node.args, self._evaluate)
            kwargs: Any = fx.node.map_arg(node.kwargs, self._evaluate)
            if "device" in kwargs:  # codes are followed on the host, whatever device the model runs on
                kwargs = {**kwargs, "device": torch.device("cpu")}
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        self._known[node] = value
        return value

    def _length(self, node: fx.Node) -> int:
        return len(torch.arange(*fx.node.map_arg(node.args, self._evaluate)))  # type: ignore[arg-type]

    def _picked(self, node: fx.Node) -> fx.Node | None:
        """The tensor of which `node` picks rows; None for other nodes."""
        if not self._chosen:
            return None
        args: Any = node.args
        if node.target is aten.index_select.default:
            dim, rows = args[1], args[2]
        elif node.target is aten.index.Tensor and sum(i is not None for i in args[1]) == 1:
            dim, rows = next((d, i) for d, i in enumerate(args[1]) if i is not None)
        else:
            return None
        is_list = rows.meta["val"].dim() == 1 and not self._program.shape(args[0])[dim].is_Integer
        return args[0] if is_list else None


def _by_constants(node: fx.Node) -> bool:
    """True if elements are picked by numbers of the model: ``edge_index[[1, 0]]``."""
    return node.target in (aten.index.Tensor, aten.index_select.default) and all(
        n.op == "get_attr" for n in node.all_input_nodes if n is not node.args[0]
    )
