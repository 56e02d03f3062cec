"""Tables of radial functions at run time: the range that they hold for, and the weights that they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...errors import InputError, UnsupportedOp
from ...ir import Normal

_NAME = "tabulated weight "


def weights_of_tables(program: Normal) -> dict[str | int, Tensor]:
    """The weights in tables that require gradients, by names that no parameter has."""
    found = (w for entry in program.tabulated for w in entry.weights if w.requires_grad)
    return {f"{_NAME}{i}": w for i, w in enumerate(found)}


def refuse_gradients_of_tables(given: Mapping[str | int, Tensor]) -> None:
    """Refuse to differentiate by weights that stand in tables: the gradient would lack their part."""
    if any(isinstance(name, str) and name.startswith(_NAME) and x.requires_grad for name, x in given.items()):
        raise UnsupportedOp(
            "A result is differentiated by weights that were made into tables, since radial_error was asked for. "
            "Compile without radial_error to train. For gradients by the graph, let the weights require none: "
            "model.requires_grad_(False)."
        )


def within_tables(program: Normal, results: Sequence[Tensor]) -> list[Tensor]:
    """The results of the model, if all numbers that were looked up are in the range of their tables.

    Raises:
        InputError: some are not. It is raised on every rank.
    """
    wanted = len(results) - len(program.tabulated)
    for entry, outside in zip(program.tabulated, results[wanted:], strict=True):
        if complaint := entry.complaint(outside.detach()):
            raise InputError(complaint)
    return list(results[:wanted])
