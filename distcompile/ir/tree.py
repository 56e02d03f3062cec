"""Flatten any graph object to tensors and rebuild it around others.

A graph may be any nesting of dicts, lists, tuples, named tuples, dataclasses, mapping-like objects
(PyG ``Data``) and plain attribute objects. Tensors are leaves; so are Python integers that may count rows
(``num_nodes=95``), as tensors of that length: a captured program must not hold for one number of atoms only.
Everything else is kept as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .sizes import SMALLEST_SPACE
from .texts import Text

# Objects of these types never hold the tensors of a graph, so they are not searched.
_OPAQUE = (
    *(str, bytes, int, float, complex, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(types.ModuleType, nn.Module, torch.dtype, torch.device, torch.Generator),
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor of a graph object; ``path`` is how a user would write it: ``graph['cell']``, ``[0].lattice``."""

    path: str
    tensor: Any
    """A tensor; in the result of a traced call it may also be a symbolic number."""


def device_of(leaves: Iterable[Leaf]) -> torch.device:
    """The device that a graph object is evaluated on: an accelerator if any of its tensors is on one, else the CPU."""
    devices = (leaf.tensor.device for leaf in leaves)
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


@dataclasses.dataclass(frozen=True)
class Tree:
    """The shape of a graph object with its tensors taken out."""

    rebuild: Callable[[Iterator[Any]], Any]
    numbers: tuple[tuple[str, int | float | bool], ...]
    """Python numbers found in the object: a captured program holds for these values only."""
    texts: tuple[tuple[str, str], ...]
    """Strings found in it: a captured program holds for those that the model read."""

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the object with its tensors replaced by `leaves`, given in the order of `flatten`."""
        return self.rebuild(iter(leaves))


COUNTS = range(SMALLEST_SPACE, 10**8)
"""Python integers that may be the number of rows of an index space."""


def flatten(obj: Any, root: str = "", counts: bool = False, read: set[str] | None = None) -> tuple[list[Leaf], Tree]:
    """Return the tensors of `obj`, in a stable order, and the tree that puts others in their place.

    The object itself is never changed: containers are copied on rebuilding. With `counts`, integers that may count rows
    are leaves too; they are rebuilt from the sizes of the tensors that stand for them. With `read`, strings are rebuilt
    as strings that add their paths to `read` when the model reads them.
    """
    found = _Found([], [], [], counts, read)
    rebuild = _flatten(obj, root, found, ())
    return found.leaves, Tree(rebuild, tuple(found.numbers), tuple(found.texts))


@dataclasses.dataclass(frozen=True)
class _Found:
    """The values found so far in an object, and the kinds of values that are looked for."""

    leaves: list[Leaf]
    numbers: list[tuple[str, int | float | bool]]
    texts: list[tuple[str, str]]
    counts: bool
    read: set[str] | None

    @property
    def replaced(self) -> int:
        """The number of values so far that are rebuilt as others."""
        return len(self.leaves) + (len(self.texts) if self.read is not None else 0)

    def text(self, path: str, value: str) -> Callable[[Iterator[Any]], Any]:
        self.texts.append((path, value))
        read = self.read
        if read is None:
            return lambda it: value
        return lambda it: Text(value, lambda: read.add(path))


def _flatten(obj: Any, path: str, found: _Found, above: tuple[int, ...]) -> Callable[[Iterator[Any]], Any]:
    if isinstance(obj, Tensor | torch.SymInt | torch.SymFloat):
        found.leaves.append(Leaf(path or "input", obj))
        return lambda it: next(it)
    if found.counts and type(obj) is int and obj in COUNTS:
        found.leaves.append(Leaf(path, torch.zeros((), dtype=torch.bool).expand(obj)))
        return lambda it: next(it).shape[0]
    if isinstance(obj, int | float):
        found.numbers.append((path, obj))
        return lambda it: obj
    if type(obj) is str:
        return found.text(path, obj)
    if obj is None or isinstance(obj, _OPAQUE) or id(obj) in above:
        return lambda it: obj

    above = (*above, id(obj))
    children = _children(obj)
    if not children:
        return lambda it: obj
    before = found.replaced
    parts = [(key, _flatten(child, path + label, found, above)) for key, label, child in children]
    if found.replaced == before:  # nothing to put in, but a model must not append to the user's own
        return lambda it: copy.copy(obj) if type(obj) in (list, dict, set) else obj
    return lambda it: _with_children(obj, [(key, part(it)) for key, part in parts])


def _children(obj: Any) -> list[tuple[Any, str, Any]]:
    """List (key, label for people, value) of everything that `obj` contains."""
    if isinstance(obj, list | tuple):
        names = getattr(obj, "_fields", None)
        return [(i, f".{names[i]}" if names else f"[{i}]", value) for i, value in enumerate(obj)]
    if _is_mapping(obj):
        # Sorted: the order of a PyG Data's keys differs from process to process, and all ranks must agree.
        keys = sorted(obj.keys(), key=lambda key: (type(key).__name__, str(key)))
        return [(key, f"[{key!r}]", obj[key]) for key in keys]
    if dataclasses.is_dataclass(obj):
        set_ = [f.name for f in dataclasses.fields(obj) if hasattr(obj, f.name)]  # some may be missing yet
        return [(name, f".{name}", getattr(obj, name)) for name in set_]
    return [(name, f".{name}", value) for name, value in getattr(obj, "__dict__", {}).items()]


def _with_children(obj: Any, items: list[tuple[Any, Any]]) -> Any:
    values = [value for _, value in items]
    if isinstance(obj, tuple):
        return type(obj)(*values) if hasattr(obj, "_fields") else type(obj)(values)
    if isinstance(obj, list):
        return type(obj)(values)
    new = copy.copy(obj)
    for name, value in list(getattr(new, "__dict__", {}).items()):
        if type(value) in (dict, list, set):  # a model that writes to its graph must not write to the user's
            new.__dict__[name] = copy.copy(value)
    if _is_mapping(obj):
        for key, value in items:
            new[key] = value
    else:
        for name, value in items:
            object.__setattr__(new, name, value)  # also sets the fields of a frozen dataclass
    return new


def _is_mapping(obj: Any) -> bool:
    return all(hasattr(type(obj), name) for name in ("keys", "__getitem__", "__setitem__"))
