"""Strings of a graph object that note when a model reads them.

A captured program holds for the strings that the model looked at (which data set's head to take, which units), not for
names that it carries along: a structure's identifier must not have a program captured for each structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Text(str):
    """A string that calls `note` whenever anything but its identity is asked for."""

    __slots__ = ("note",)
    note: Callable[[], None]

    def __new__(cls, value: str, note: Callable[[], None]) -> Text:
        made = super().__new__(cls, value)
        made.note = note
        return made

    def __reduce__(self) -> Any:
        self.note()
        return str, (str.__str__(self),)


def _noting(name: str) -> Callable[..., Any]:
    original = getattr(str, name)

    def method(self: Text, *args: Any, **kwargs: Any) -> Any:
        self.note()
        return original(self, *args, **kwargs)

    return method


_KEPT = {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__doc__"}
_KEPT |= {"__init_subclass__", "__subclasshook__", "__sizeof__", "__reduce__", "__reduce_ex__", "__getnewargs__"}
for _name in set(dir(str)) - _KEPT:
    setattr(Text, _name, _noting(_name))
