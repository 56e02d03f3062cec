"""The operators that component code knows, beside those that only move elements about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    """Register what some operators compute. Takes the follower, the dtype of the result, and the call's arguments."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, function))
        return function

    return register
