"""The tutorial as a notebook, from ``docs/tutorial.md``: ``python docs/notebook.py > examples/tutorial.ipynb``.

Python blocks become cells, and so do blocks of ``distcompile`` commands; other commands stay text, as they need a
terminal or a cluster. There are no results in it: the file is the same whoever makes it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(```(?:python|bash)\n.*?```\n)", re.DOTALL)


def notebook(page: str) -> dict[str, Any]:
    """A page as a notebook (nbformat 4.5)."""
    cells: list[tuple[str, str]] = []
    for part in BLOCK.split(page):
        kind, text = _cell(part)
        if kind == "markdown" and cells and cells[-1][0] == "markdown":
            cells[-1] = kind, f"{cells[-1][1]}\n\n{text}".strip()
        elif text:
            cells.append((kind, text))
    return {
        "cells": [_as_json(number, *cell) for number, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text_of(page: str) -> str:
    """The notebook of a page as the text of a file."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


def _cell(part: str) -> tuple[str, str]:
    """A block, or the text between two blocks, as the kind of a cell and its source."""
    language, _, lines = part.removeprefix("```").partition("\n")
    source = lines.removesuffix("```\n").strip()
    if BLOCK.fullmatch(part) and language == "python":
        return "code", source
    if BLOCK.fullmatch(part) and all(line.startswith("distcompile ") for line in source.splitlines()):
        return "code", "\n".join(f"!{line}" for line in source.splitlines())
    return "markdown", _links_from_examples(part).strip()


def _links_from_examples(text: str) -> str:
    """Links of a page in ``docs`` for a file in ``examples``."""
    text = re.sub(r"\]\(([\w-]+\.md)", r"](../docs/\1", text)
    return text.replace("](../examples/", "](")


def _as_json(number: int, kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


if __name__ == "__main__":
    print(text_of((DOCS / "tutorial.md").read_text()), end="")
