"""The line of the user's code that an operator comes from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import fx

from .. import errors

OURS = tuple(str(Path(f).parent) + os.sep for f in (torch.__file__, errors.__file__))
"""The folders of files that are not the user's."""


def user_frame(node: fx.Node) -> tuple[str, str]:
    """The user's innermost frame ('File "...", line 3, in f') and its code; empty if the tracer recorded none."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    theirs = [
        i
        for i, line in enumerate(lines)
        if line.startswith("File ") and not line.removeprefix('File "').startswith(OURS)
    ]
    if not theirs:
        return "", ""
    code = lines[theirs[-1] + 1] if theirs[-1] + 1 < len(lines) else ""
    return lines[theirs[-1]], code


def user_line(node: fx.Node) -> str:
    """The line of the user's code that an operator comes from, as text."""
    frame, code = user_frame(node)
    if not frame:
        return "at: a line that the tracer did not record (often the backward of an operator)"
    return f"at: {frame}\n      {code}"


def user_place(node: fx.Node) -> str:
    """The user's line that an operator belongs to, short: ``layers.py:115 forward``."""
    frame, _ = user_frame(node)
    found = re.match(r'File "(.*)", line (\d+), in (.*)', frame)
    if found is None:
        return node.name
    file, line, function = found.groups()
    return f"{file.rpartition('/')[2]}:{line} {function}"
