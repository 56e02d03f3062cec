"""What a command prints: tables and notes, tables alone (``--quiet``), or one JSON object (``--json``)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..show.progress import silent

Speak = Callable[[Mapping[str, Any], Callable[[], None]], None]
"""Shows a result, which is given as a record of numbers and texts, and as what prints its tables."""


@contextlib.contextmanager
def speaking(as_json: bool, quiet: bool) -> Iterator[Speak]:
    """A function that shows results. Notes, and what packages print, go to stderr beside JSON, nowhere if `quiet`."""
    if not (as_json or quiet):
        yield lambda record, tables: tables()
        return
    real, found = sys.stdout, dict[str, Any]()

    def speak(record: Mapping[str, Any], tables: Callable[[], None]) -> None:
        if as_json:
            found.update(record)
            return
        with contextlib.redirect_stdout(real):
            tables()

    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(silent())
        stack.enter_context(contextlib.redirect_stdout(nowhere if quiet else sys.stderr))
        yield speak
    if as_json:
        print(json.dumps(found, default=_plain), file=real, flush=True)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as those of JSON."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
