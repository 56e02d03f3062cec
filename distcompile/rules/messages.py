"""Messages between ranks, as values: read off an operator of a graph, and written as one.

halo_exchange(x, send_rows, splits, n, 0)                                      done at once, can be differentiated
p = start("exchange", x, send_rows, splits, n, 0, ...);  h = wait(p, x)        in two phases, in a tiled graph
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import fx

from ..ir import Input, Reduction, Space
from ..ir.operators import facts_of
from ..ir.writer import write
from ..runtime.operators.halo import halo_exchange, halo_gather, halo_reduce, halo_scatter
from ..runtime.operators.messages import Kind, start, wait

_OPERATORS: dict[Kind, Any] = {
    "exchange": halo_exchange,
    "gather": halo_gather,
    "reduce": halo_reduce,
    "scatter": halo_scatter,
}
_KINDS: dict[Any, Kind] = {operator: kind for kind, operator in _OPERATORS.items()}


@dataclasses.dataclass(frozen=True)
class Message:
    """Rows of halos that cross, from their owners to the ranks that read them or back."""

    kind: Kind
    value: fx.Node
    """The value whose rows are sent: owned rows, owned and halo rows (of a reduction), or halo rows (of a scatter)."""
    send_rows: fx.Node
    """The input that tells which owned rows other ranks read; its space is that of the message."""
    splits: fx.Node
    dim: int
    """The dimension of the value that counts rows."""
    halo_rows: fx.Node | None = None
    """The number of halo rows; a scatter needs none."""
    onto: fx.Node | None = None
    """The owned rows that a scatter adds to."""
    reduction: Reduction = "sum"
    places: fx.Node | None = None
    """The input that tells which of the halo rows cross; None if all do."""

    @property
    def name(self) -> str:
        """The name of the operator that sends the message at once."""
        return f"halo_{self.kind}"

    @property
    def to_readers(self) -> bool:
        """True if rows go from their owners to the ranks that read them."""
        crossing = facts_of(_OPERATORS[self.kind]).crosses
        return crossing is not None and crossing.to == "readers"

    @property
    def of_all_rows(self) -> bool:
        """True if all halo rows cross."""
        return self.places is None

    @property
    def lands_on(self) -> fx.Node | None:
        """The rows that arriving rows are put beside, or added to."""
        return {"exchange": self.value, "reduce": self.value, "scatter": self.onto, "gather": None}[self.kind]

    def space(self, inputs: Iterable[Input]) -> Space:
        """The space whose halo rows, or some of them, cross."""
        found = next(given.space for given in inputs if given.name == self.send_rows.name)
        assert found is not None
        return found

    def thinned(self, send_rows: fx.Node, splits: fx.Node, places: fx.Node) -> Message:
        """The same message of some of the halo rows."""
        return dataclasses.replace(self, send_rows=send_rows, splits=splits, places=places)

    def on(self, copy: Callable[[fx.Node], fx.Node], value: fx.Node) -> Message:
        """The same message in a copy of the graph, about `value` there."""
        nodes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        copied: Any = {name: copy(n) for name, n in nodes.items() if isinstance(n, fx.Node) and name != "value"}
        return dataclasses.replace(self, value=value, **copied)

    def written(self, graph: fx.Graph, **known: Any) -> fx.Node:
        """Write the operator that sends the message at once, at the graph's insertion point.

        `known` is as of `ir.writer.write`.
        """
        return write(graph, _OPERATORS[self.kind], self.operands(), **known)

    def operands(self) -> tuple[Any, ...]:
        """The operands of the operator that sends the message at once."""
        fourth = self.onto if self.kind == "scatter" else self.halo_rows
        operands: tuple[Any, ...] = (self.value, self.send_rows, self.splits, fourth, self.dim)
        if self.kind == "reduce" and (self.reduction != "sum" or not self.of_all_rows):
            operands = (*operands, self.reduction)
        return operands if self.of_all_rows else (*operands, self.places)

    def begun(self, graph: fx.Graph, like: fx.Node, in_place: bool) -> fx.Node:
        """Write the message's start, and the wait for it, at the graph's insertion point; return the wait.

        Args:
            graph: a tiled graph.
            like: the operator that sends the message at once.
            in_place: the value is a table with room for halo rows, in which the message ends.
        """
        plan = (self.send_rows, self.splits, self.halo_rows, self.dim, self.reduction, self.places)
        begin = write(graph, start, (self.kind, self.value, *plan, in_place), value=None)
        rows = () if self.lands_on is None else (self.lands_on,)
        return write(graph, wait, (begin, *rows), like=like)


def message(node: fx.Node) -> Message | None:
    """The message that an operator is, or starts; None for other operators."""
    given: Any = node.args
    if node.target is start:
        kind, value, send_rows, splits, halo_rows, dim, reduction, places, _ = given
        return Message(kind, value, send_rows, splits, dim, halo_rows, None, reduction, places)
    if node.target not in _KINDS:
        return None
    kind = _KINDS[node.target]
    value, send_rows, splits, fourth, dim, *more = given
    reduction = cast(Reduction, more.pop(0) if kind == "reduce" and more else "sum")
    halo_rows, onto = (None, fourth) if kind == "scatter" else (fourth, None)
    return Message(kind, value, send_rows, splits, dim, halo_rows, onto, reduction, more[0] if more else None)


def is_message(node: fx.Node, *kinds: Kind) -> bool:
    """True if an operator is a message, or starts one, of these kinds; of any kind if none is named."""
    found = message(node)
    return found is not None and (not kinds or found.kind in kinds)


def ends_in_place(begin: fx.Node) -> bool:
    """True if a message that was started ends in the table that it began with."""
    return bool(begin.args[-1])
