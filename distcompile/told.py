"""An error of somebody else's code, in one line."""

from __future__ import annotations

import traceback
from pathlib import Path


def told(error: BaseException) -> str:
    """What kind of error, what it says and where it was raised: ``ValueError: no such atom (model.py, line 12)``."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"
