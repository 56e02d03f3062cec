"""The division of values among ranks."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import fx

from .spaces import Dim

META = "distcompile"
"""Key of a node's `Placement` in ``node.meta``."""

WHOLE_RULE = "whole"
"""Rule of the placement of an operator that runs on all rows, on every rank."""

Reduction = Literal["sum", "amax", "amin"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The division of a value among ranks."""

    dims: tuple[Dim, ...] = ()
    partial: bool = False
    """Each rank holds a part (a summand, unless `reduction` says otherwise); all_reduce makes it whole."""
    rule: str = ""
    """The name of the rule that decided so."""
    reduction: Reduction = "sum"
    """The operation that makes the whole of the parts of a partial value."""

    @property
    def sharded(self) -> bool:
        return any(self.dims)

    def whole(self) -> Placement:
        """The same value after an all_reduce."""
        return dataclasses.replace(self, partial=False)


def placement(node: fx.Node) -> Placement | tuple[Placement, ...]:
    """The placement that the place pass gave to `node`."""
    return node.meta[META]  # type: ignore[no-any-return]
