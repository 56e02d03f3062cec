"""The models of a calculator, however deep calculators hold each other.

SumCalculator -> mixer -> [calculator -> model, calculator -> predictor -> model]
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

_DEPTH = 3
"""The number of objects around a model within a calculator: a predictor, an engine. Containers do not count."""
_OPAQUE = (str, bytes, int, float, complex, type, np.ndarray, Tensor, types.ModuleType, types.FunctionType)


def calculators_in(holder: Any) -> list[Any]:
    """The holder itself, and every calculator within it."""
    return list({id(of): of for of, _ in _held(holder)}.values())


def models_in(holder: Any) -> list[nn.Module]:
    """The models of all calculators: of each, its modules with weights, or all its modules if none has any."""
    by_calculator: dict[int, list[nn.Module]] = {}
    for of, value in _held(holder):
        if isinstance(value, nn.Module):
            by_calculator.setdefault(id(of), []).append(value)
    found = [
        module
        for modules in by_calculator.values()
        for module in ([m for m in modules if next(m.parameters(), None) is not None] or modules)
    ]
    return list(dict.fromkeys(found))


def _held(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every object within a holder, with the innermost calculator that holds it.

    The search does not go into modules.
    """
    seen: set[int] = set()
    pending = deque([(holder, holder, _DEPTH)])
    while pending:
        of, value, depth = pending.popleft()
        if id(value) in seen or isinstance(value, _OPAQUE):
            continue
        seen.add(id(value))
        if _calculates(value):
            of, depth = value, _DEPTH
        yield of, value
        if isinstance(value, nn.Module):
            continue
        if isinstance(value, dict | list | tuple | set):
            pending.extend((of, one, depth) for one in (value.values() if isinstance(value, dict) else list(value)))
        elif isinstance(value, functools.partial | types.MethodType):
            behind = (value.func, *value.args) if isinstance(value, functools.partial) else (value.__self__,)
            pending.extend((of, one, depth) for one in behind)
        elif depth:
            pending.extend((of, one, depth - 1) for one in list(getattr(value, "__dict__", {}).values()))


def _calculates(value: Any) -> bool:
    return callable(getattr(type(value), "calculate", None))
