"""A page around figures: one file that holds all it needs, plotly's own code included."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .records import Operator, Page, Program

if TYPE_CHECKING:
    import plotly.graph_objects as go

NEEDED = ("plotly", "jinja2")
"""The packages that make pages; nothing else needs them."""


def missing() -> str:
    """Why no page can be made, and the cure; empty if one can."""
    without = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not without:
        return ""
    there = "is" if len(without) == 1 else "are"
    named, cure = " and ".join(without), " ".join(without)
    return f"Pages are made with {named}, which {there} not installed here: pip install {cure}."


def page(content: Page) -> str:
    """The page, as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from . import figures

    loader = PackageLoader(__package__, "assets")
    around = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    spaces = _spaces(content)
    colour = figures.colours(spaces)
    drawn = _figures(content, colour)
    data = {
        "figures": {name: json.loads(figure.to_json()) for name, figure in drawn.items()},
        "program": listed(content.program, colour) if content.program is not None else None,
    }
    return around.get_template("page.html").render(
        page=content,
        colour=colour,
        every=figures.thinned(content.atoms) if content.atoms is not None else 1,
        pairs=figures.PAIRS,
        figures=list(drawn),
        data=Markup(in_script(data)),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
    )


def in_script(data: Any) -> str:
    """Data as JSON that no text within can end: a script element is not closed, nor a comment begun, by it."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text()


def _spaces(content: Page) -> Sequence[str]:
    """All spaces of a page, those of rows that ranks own first."""
    if content.program is not None:
        return [name for name, _ in content.program.spaces]
    return list(content.growth.owned) if content.growth is not None else []


def _figures(content: Page, colour: Mapping[str, str]) -> dict[str, go.Figure]:
    """The figures of a page by the names of their places in it."""
    from . import figures

    found: dict[str, go.Figure] = {}
    if content.atoms is not None and content.ranks is not None:
        found["division"] = figures.division(content.atoms, content.ranks)
    if content.ranks is not None:
        found["rows"] = figures.rows(content.ranks, colour)
        if len(content.ranks.memory) > 1:
            found["traffic"] = figures.traffic(content.ranks)
    if content.regions and content.ranks is not None:
        found["memory"] = figures.memory(content.regions, colour, int(content.ranks.memory.max()))
        found["seconds"] = figures.seconds(content.regions, colour)
    if content.scaling:
        found["strong"] = figures.curves(content.scaling, False)
        found["weak"] = figures.curves(content.scaling, True)
    if content.growth is not None:
        found["growth"] = figures.growth(content.growth, colour)
        found["held"] = figures.held(content.growth)
    for i, (device, weak) in enumerate(itertools.product(content.scaling, (False, True))):
        found[f"parts{i}"] = figures.scaling(device, weak)
    if content.scaling:
        found["efficiency"] = figures.efficiency(content.scaling)
    return found


def listed(program: Program, colour: Mapping[str, str]) -> dict[str, Any]:
    """A program as lists of numbers: each text, and each operator that stays as it is from pass to pass, once."""
    texts: dict[str, int] = {}
    operators: dict[Operator, int] = {}

    def text(of: str) -> int:
        return texts.setdefault(of, len(texts))

    passes = []
    before: set[tuple[str, str]] = set()
    for each in program.passes:
        now = {(o.part, o.name) for o in each.operators}
        passes.append(
            {
                "name": each.name,
                "stage": each.stage,
                "operators": [operators.setdefault(o, len(operators)) for o in each.operators],
                "gone": len(before - now),
                "come": len(now - before) if before else 0,
            }
        )
        before = now
    rows = [
        [
            *map(text, (o.part, o.name, o.operator, o.gives, o.space, o.made_by, o.line, o.arguments, o.crosses)),
            o.row_bytes,
            [text(name) for name in o.inputs],
        ]
        for o in operators
    ]
    return {
        "spaces": [{"name": name, "where": where, "colour": colour[name]} for name, where in program.spaces],
        "texts": list(texts),
        "operators": rows,
        "passes": passes,
        "lines": {place: [line.file, line.number, line.code] for place, line in program.lines.items()},
    }
