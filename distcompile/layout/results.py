"""How a calculator's results come out of what its model returns.

energy = e * number of atoms     stress = a [3, 3] in Voigt's order, times a constant     forces = as they are
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .structure import Structure

ORDERS = ((), (0, 4, 8, 5, 2, 1), (0, 1, 2, 4, 5, 3))
"""Places of xx, yy, zz, yz, xz, xy in a flattened tensor of 3 x 3, and in xx, yy, zz, xy, yz, zx."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model returned for a structure, and what the calculator made of it."""

    structure: Structure
    returned: Sequence[Tensor]
    results: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ResultRecipe:
    """How one result is made."""

    source: int
    """The number of the tensor that the model returns."""
    factor: float
    by: str
    """What it is multiplied by, too: a name in `_SCALES`."""
    order: tuple[int, ...]
    """One of `ORDERS`; empty for as it is."""
    shape: tuple[int, ...] | None
    """Its shape, -1 for the number of atoms; None for a plain number."""
    dtype: Any

    def __call__(self, structure: Structure, returned: Sequence[Tensor | None]) -> Any:
        """The result, as the calculator gives it."""
        tensor = returned[self.source]
        assert tensor is not None
        values = _scaled(structure, tensor, self.by, self.order) * self.factor
        if self.shape is None:
            return self.dtype(values.item())
        shape = [len(structure) if n < 0 else n for n in self.shape]
        return values.reshape(shape).numpy().astype(self.dtype)


_SCALES = {
    "": lambda structure: 1.0,
    "number of atoms": lambda structure: float(len(structure)),
    "1 / number of atoms": lambda structure: 1 / max(len(structure), 1),
    "1 / volume": lambda structure: 1 / (float(torch.linalg.det(structure.cell).abs()) or 1.0),
    "volume": lambda structure: float(torch.linalg.det(structure.cell).abs()),
}


def fit_results(outcomes: Sequence[Outcome]) -> dict[str, ResultRecipe]:
    """A recipe for each result that has one."""
    found = {}
    for name in outcomes[0].results:
        if all(name in o.results for o in outcomes):
            recipe = _fit(outcomes, [o.results[name] for o in outcomes])
            if recipe is not None:
                found[name] = recipe
    return found


def _fit(outcomes: Sequence[Outcome], values: Sequence[Any]) -> ResultRecipe | None:
    if not all(isinstance(v, float | np.floating | np.ndarray) for v in values):
        return None
    arrays = [np.asarray(v) for v in values]
    if not all(a.dtype.kind == "f" for a in arrays) or len({a.ndim for a in arrays}) > 1:
        return None
    shape = _shape([a.shape for a in arrays], [len(o.structure) for o in outcomes])
    if shape is None:
        return None
    plain = not isinstance(values[0], np.ndarray)
    made_as = (None, type(values[0])) if plain else (shape, arrays[0].dtype)
    wanted = [torch.from_numpy(a.astype(np.float64)).reshape(-1) for a in arrays]
    for source, by in itertools.product(range(len(outcomes[0].returned)), _SCALES):
        for order in ORDERS:
            factor = _factor(outcomes, wanted, source, by, order)
            if factor is not None:
                return ResultRecipe(source, factor, by, order, *made_as)
    return None


def _shape(shapes: Sequence[tuple[int, ...]], counts: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of a result, -1 for the number of atoms."""
    found = []
    for sizes in zip(*shapes, strict=True):
        if len(set(sizes)) == 1:
            found.append(sizes[0])
        elif list(sizes) == list(counts):
            found.append(-1)
        else:
            return None
    return tuple(found)


def _scaled(structure: Structure, tensor: Tensor, by: str, order: tuple[int, ...]) -> Tensor:
    values = tensor.detach().cpu().double().reshape(-1)
    if order:
        values = values[list(order)]
    return values * _SCALES[by](structure)


def _factor(
    outcomes: Sequence[Outcome], wanted: Sequence[Tensor], source: int, by: str, order: tuple[int, ...]
) -> float | None:
    """The constant by which a tensor that the model returned, scaled, becomes the result; None if there is none."""
    given = []
    single = False
    for o, values in zip(outcomes, wanted, strict=True):
        tensor = o.returned[source]
        if not tensor.is_floating_point() or tensor.numel() != (9 if max(order, default=0) > 5 else len(values)):
            return None
        if order and len(values) != 6:
            return None
        given.append(_scaled(o.structure, tensor, by, order))
        single = single or tensor.dtype != torch.float64
    one, two = torch.cat(given), torch.cat(list(wanted))
    square = float(one @ one)
    if not square:
        return None
    factor = float(one @ two) / square
    most = 1e-5 if single else 1e-10
    for exact in (1.0, -1.0):
        factor = exact if abs(factor - exact) < most else factor
    for a, b in zip(given, wanted, strict=True):
        if len(b) and float((a * factor - b).abs().max()) > most * float(b.abs().max()):
            return None
    return factor if factor else None
