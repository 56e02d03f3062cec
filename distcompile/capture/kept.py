"""Leave no trace in a model: tensors that it keeps while it is traced are of no use to it afterwards.

    if self.table is None:
        self.table = torch.arange(n)       a fake tensor, in the attributes of the user's model
    self.cache[n] = distances              or in a dict of it

Attributes that hold such tensors after a capture get back what they held before; so do lists and dicts in them. After
a capture that failed all attributes do: the model was left in the middle of a call.
The captured program then computes at every call what the model computes at its first one. A model belongs to all
threads: one that keeps tensors of a call is not for another thread to evaluate while it is captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

_DEPTH = 4
"""The depth to which containers within containers are searched."""
_MISSING = object()


@contextmanager
def nothing_kept(model: nn.Module | None) -> Iterator[None]:
    """Restore, in the end, every attribute of `model` and its modules that holds a traced value by then."""
    before = [(module, dict(vars(module))) for module in (model.modules() if model is not None else ())]
    containers = [pair for _, attributes in before for pair in _copies(list(attributes.values()), _DEPTH)]
    failed = True
    try:
        yield
        failed = False
    finally:
        for container, content in containers:
            if failed or _is_traced(container, _DEPTH):
                container.clear()
                container.update(content) if isinstance(container, dict) else container.extend(content)
        for module, attributes in before:
            for name, value in list(vars(module).items()):
                if attributes.get(name, _MISSING) is value or not (failed or _is_traced(value, _DEPTH)):
                    continue
                if name in attributes:
                    vars(module)[name] = attributes[name]
                else:
                    del vars(module)[name]


def _copies(values: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """Every list and dict among values and within them, beside a copy."""
    for value in values:
        if isinstance(value, list | dict):
            content = value.copy()
            yield value, content
            if depth:
                yield from _copies(list(content.values() if isinstance(content, dict) else content), depth - 1)


def _is_traced(value: Any, depth: int) -> bool:
    """True if a value is part of a capture, or holds one that is."""
    if isinstance(value, FakeTensor | torch.SymInt | torch.SymFloat):
        return True
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return depth > 0 and isinstance(value, list | tuple | set) and any(_is_traced(v, depth - 1) for v in value)
