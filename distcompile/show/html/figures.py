"""Figures of a page, by plotly, from its records."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from ...ir import halo_name
from .records import Atoms, Growth, Ranks, Region, Scaling

SPACES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#882255", "#44aa99")
"""Colours of index spaces, atoms first; told apart with any kind of colour vision."""
WHOLE = "#8a8f98"
"""The colour of what has no rows of a space."""
OF_RANKS = (*qualitative.D3, *qualitative.Dark24)
"""Colours of ranks."""

OTHERS = qualitative.T10
"""Colours of what is neither a space nor a rank."""
HALO = halo_name("")

DRAWN = 12_000
"""Atoms that are drawn, at most: about as many as a browser turns without delay."""
PAIRS = 300
"""Pairs of ranks whose messages are drawn, at most: those with most bytes."""
WIDTH = (2.0, 10.0)
"""Widths of the lines of the fewest and of the most bytes."""

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def colours(spaces: Sequence[str]) -> dict[str, str]:
    """The colour of each space, the same in all figures; halo rows are lighter. More spaces than colours share them."""
    found = dict(zip([s for s in spaces if not s.startswith(HALO)], itertools.cycle(SPACES), strict=False))
    return found | {s: lighter(found[s.removeprefix(HALO)]) for s in spaces if s.startswith(HALO)}


def lighter(colour: str) -> str:
    """A colour mixed with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(0.7 * part + 0.3 * 255):02x}" for part in parts)


def of_rank(rank: int) -> str:
    """The colour of a rank."""
    return OF_RANKS[rank % len(OF_RANKS)]


def thinned(atoms: Atoms) -> int:
    """One of how many atoms is drawn."""
    return max(1, -(-len(atoms.positions) // DRAWN))


def division(atoms: Atoms, ranks: Ranks) -> go.Figure:
    """Atoms by owner, the halo of each rank, and lines between ranks that exchange rows.

    Each trace says in ``meta`` what it is, so that the page can show one rank with its halo.
    """
    every, parts = thinned(atoms), len(atoms.halo)
    figure = go.Figure()
    if np.linalg.matrix_rank(atoms.cell) == 3:
        figure.add_trace(_box(atoms.cell))
    for rank in range(parts):
        mine = np.flatnonzero(atoms.owner == rank)
        figure.add_trace(_points(atoms, mine[::every], rank, "owned", f"rank {rank}: {len(mine)} atoms"))
    for rank in range(parts):
        read = atoms.halo[rank]
        name = f"halo of rank {rank}: {len(read)} atoms,<br>in the colours of their owners"
        figure.add_trace(_points(atoms, read[::every], rank, "halo", name))
    middles = {rank: atoms.positions[atoms.owner == rank].mean(0) for rank in range(parts) if rank in atoms.owner}
    for line in _messages(middles, ranks.sent):
        figure.add_trace(line)
    x, y, z = np.array(list(middles.values())).T
    figure.add_trace(
        go.Scatter3d(
            x=x,
            y=y,
            z=z,
            mode="text",
            text=[f"<b>rank {rank}</b>" if parts > 1 else "" for rank in middles],
            hoverinfo="skip",
            textfont={"size": 14, "color": "#1c2128"},
            showlegend=False,
            meta={"role": "name"},
        )
    )
    hidden = {"visible": False}
    figure.update_layout(
        _layout(height=620),
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "camera": {"eye": {"x": 1.35, "y": 1.35, "z": 0.65}, "center": {"x": 0, "y": 0, "z": -0.1}},
        },
        margin={"l": 0, "r": 0, "t": 10, "b": 0},
        legend={"itemsizing": "constant", "yanchor": "top", "y": 0.95},
    )
    return figure


def _box(cell: np.ndarray) -> go.Scatter3d:
    """The edges of the cell."""
    corners = list(itertools.product((0, 1), repeat=3))
    path: list[Any] = []
    for one, other in itertools.combinations(corners, 2):
        if sum(a != b for a, b in zip(one, other, strict=True)) == 1:
            path += [np.array(one) @ cell, np.array(other) @ cell, [None] * 3]
    x, y, z = zip(*path, strict=True)
    line = {"color": "#9aa0a8", "width": 2}
    return go.Scatter3d(
        x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip", showlegend=False, meta={"role": "cell"}
    )


def _points(atoms: Atoms, chosen: np.ndarray, rank: int, role: str, name: str) -> go.Scatter3d:
    x, y, z = atoms.positions[chosen].T.round(3)
    owners = atoms.owner[chosen]
    halo = role == "halo"
    marker = {
        "size": 5 if len(atoms.positions) < 3000 else 3,
        "color": [of_rank(r) for r in owners] if halo else of_rank(rank),
        "symbol": "diamond" if halo else "circle",
        "line": {"color": "#1c2128" if halo else "#ffffff", "width": 1 if halo else 0.5},
    }
    said = [f"{atoms.species[i]} {i}, of rank {r}" for i, r in zip(chosen, owners, strict=True)]
    return go.Scatter3d(
        x=x, y=y, z=z, mode="markers", marker=marker, name=name, hoverinfo="text", hovertext=said,
        visible=not halo, meta={"role": role, "ranks": [rank]},
    )  # fmt: skip


def _messages(middles: Mapping[int, np.ndarray], sent: np.ndarray) -> list[go.Scatter3d]:
    """A line between the middles of any two ranks that exchange rows, as wide as the bytes are many."""
    both = sent + sent.T
    pairs = [(int(both[i, j]), i, j) for i, j in itertools.combinations(middles, 2) if both[i, j]]
    pairs = sorted(pairs, reverse=True)[:PAIRS]
    found: list[go.Scatter3d] = []
    for bytes_, i, j in pairs:
        x, y, z = np.linspace(middles[i], middles[j], 9).T.round(3)  # points to hover over
        width = WIDTH[0] + (WIDTH[1] - WIDTH[0]) * bytes_ / pairs[0][0]
        said = (
            f"rank {i} and rank {j}: {amount(bytes_)}<br>rows of rank {i} for rank {j}: {amount(sent[i, j])}"
            f"<br>rows of rank {j} for rank {i}: {amount(sent[j, i])}"
        )
        found.append(
            go.Scatter3d(
                x=x,
                y=y,
                z=z,
                mode="lines",
                line={"color": "#30363d", "width": width},
                opacity=0.55,
                hoverinfo="text",
                hovertext=said,
                name="messages",
                showlegend=not found,
                legendgroup="messages",
                meta={"role": "message", "ranks": [i, j]},
            )
        )
    return found


def traffic(ranks: Ranks) -> go.Figure:
    """Bytes between any two ranks."""
    names = [f"rank {r}" for r in range(len(ranks.sent))]
    said = [[amount(b) if b else "" for b in row] for row in ranks.sent]
    few = len(names) <= 12
    scale, unit = unit_of(float(ranks.sent.max()))
    figure = go.Figure(
        go.Heatmap(
            z=ranks.sent / scale, x=names, y=names, customdata=said, colorscale="Blues", colorbar={"title": unit},
            hovertemplate="rows of %{y} that %{x} reads: %{customdata}<extra></extra>",
            text=said if few else None, texttemplate="%{text}" if few else None,
        )
    )  # fmt: skip
    figure.update_layout(_layout("Bytes of rows that cross in an evaluation", height=380))
    figure.update_xaxes(title="read by", type="category")
    figure.update_yaxes(title="owned by", type="category", autorange="reversed")
    return figure


def rows(ranks: Ranks, colour: Mapping[str, str]) -> go.Figure:
    """Rows that each rank owns and reads, a panel for each space."""
    names = [str(r) for r in range(len(ranks.memory))]
    figure = make_subplots(1, len(ranks.owned), subplot_titles=[escape(s) for s in ranks.owned])
    for at, (space, owned) in enumerate(ranks.owned.items(), 1):
        own = {"color": colour[space]}
        said = "rank %{x}: %{y} rows of " + escape(space)
        figure.add_bar(
            x=names, y=owned, name="owned", marker=own, row=1, col=at, showlegend=at == 1, legendgroup="owned",
            hovertemplate=said + ", owned<extra></extra>",
        )  # fmt: skip
        read = {"color": colour[space], "opacity": 0.45, "pattern": {"shape": "/"}}
        figure.add_bar(
            x=names, y=ranks.halo.get(space, np.zeros_like(owned)), name="read of others", marker=read, row=1, col=at,
            showlegend=at == 1, legendgroup="halo", hovertemplate=said + ", of its halo<extra></extra>",
        )  # fmt: skip
    figure.update_layout(_layout("Rows of each rank", height=380), barmode="stack")
    figure.update_layout(margin={"t": 90}, legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.28})
    figure.update_xaxes(type="category", title="rank")
    return figure


def memory(regions: Sequence[Region], colour: Mapping[str, str], peak: int) -> go.Figure:
    """Bytes that the fullest rank holds while each region runs."""
    names = [r.name for r in regions]
    tint = [_tint(r, colour) for r in regions]
    figure = go.Figure()
    figure.add_bar(
        x=names, y=[r.tables / 1e6 for r in regions], marker={"color": tint}, showlegend=False, name="for all rows",
        customdata=[[_described(r), amount(r.tables)] for r in regions],
        hovertemplate="%{customdata[0]}<br>held for all rows: %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=names, y=[r.block / 1e6 for r in regions], showlegend=False, name="for a block of rows",
        marker={"color": tint, "opacity": 0.5, "pattern": {"shape": "/"}},
        customdata=[[_described(r), amount(r.block)] for r in regions],
        hovertemplate="%{customdata[0]}<br>held for the blocks that run: %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(
        peak / 1e6, line={"color": "#30363d", "dash": "dot"}, annotation_text=f"peak, {amount(peak)}",
        annotation_position="top left",
    )  # fmt: skip
    _key(figure, regions, colour)
    figure.update_layout(_layout("Memory while each region runs, on the fullest rank", height=400), barmode="stack")
    figure.update_yaxes(title="MB", rangemode="tozero")
    _number(figure, regions)
    return figure


def seconds(regions: Sequence[Region], colour: Mapping[str, str]) -> go.Figure:
    """Seconds of each region, with those of the fastest and of the slowest rank."""
    mean = np.array([np.mean(r.seconds) for r in regions]) * 1e3
    most = np.array([max(r.seconds) for r in regions]) * 1e3
    least = np.array([min(r.seconds) for r in regions]) * 1e3
    figure = go.Figure()
    figure.add_bar(
        x=[r.name for r in regions], y=mean, marker={"color": [_tint(r, colour) for r in regions]}, showlegend=False,
        error_y={"type": "data", "symmetric": False, "array": most - mean, "arrayminus": mean - least,
                 "color": "#30363d", "thickness": 1, "visible": len(regions[0].seconds) > 1},
        customdata=[
            [_described(r), "<br>".join(f"rank {i}: {s * 1e3:.3g} ms" for i, s in enumerate(r.seconds[:16]))]
            for r in regions
        ],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip
    _key(figure, regions, colour)
    figure.update_layout(_layout("Time of each region: mean of the ranks, fastest to slowest", height=400))
    figure.update_yaxes(title="ms", rangemode="tozero")
    _number(figure, regions)
    return figure


def _number(figure: go.Figure, regions: Sequence[Region]) -> None:
    """Name regions by their numbers alone, so that many fit."""
    numbers = [r.name.removeprefix("region_") for r in regions]
    figure.update_xaxes(title="region", tickvals=[r.name for r in regions], ticktext=numbers, tickangle=0)


def _described(region: Region) -> str:
    return escape(f"{region.name}, over {region.space}: {region.operators} operators, {region.how}")


def _tint(region: Region, colour: Mapping[str, str]) -> str:
    return colour.get(region.space.split(", ")[0], WHOLE)


def _key(figure: go.Figure, regions: Sequence[Region], colour: Mapping[str, str]) -> None:
    """Say in the legend which colour is which space."""
    for space, tint in {r.space: _tint(r, colour) for r in regions}.items():
        figure.add_bar(x=[None], y=[None], marker={"color": tint}, name=f"over {space}", showlegend=True)


def scaling(found: Scaling, weak: bool) -> go.Figure:
    """Seconds of a step by number of ranks, its parts one upon the other."""
    figure = go.Figure()
    for (name, each), tint in zip((found.weak if weak else found.strong).items(), OTHERS, strict=False):
        if any(each):
            said = "%{x} ranks, " + escape(name) + ": %{y:.3g} s<extra></extra>"
            ranks = [str(n) for n in found.ranks]
            figure.add_bar(x=ranks, y=each, name=name, marker={"color": tint}, hovertemplate=said)
    much = f"as many rows a rank as on {found.ranks[-1]} ranks" if weak else "the whole structure"
    figure.update_layout(_layout(f"A step on {found.device}, by its parts: {much}", height=400), barmode="stack")
    figure.update_xaxes(title="ranks", type="category")
    figure.update_yaxes(title="s/step")
    return figure


def curves(found: Sequence[Scaling], weak: bool) -> go.Figure:
    """Seconds of a step by number of ranks, with and without the work on the graph object, and what would be ideal."""
    figure = go.Figure()
    for each, tint in zip(found, itertools.cycle(OTHERS)):
        parts, ranks = each.weak if weak else each.strong, np.array(each.ranks)
        total, without = _total(parts), _total(parts, each.graph)
        ideal = np.full(len(ranks), without[0]) if weak else without[0] / ranks
        lines = (("", total, "solid"), (", without graph", without, "dash"), (", ideal", ideal, "dot"))
        for what, values, dash in lines:
            said = "%{x} ranks: %{y:.3g} s<extra>" + escape(each.device + what) + "</extra>"
            figure.add_scatter(
                x=ranks, y=values, name=each.device + what, hovertemplate=said, line={"color": tint, "dash": dash},
                mode="lines" if dash == "dot" else "lines+markers",
            )  # fmt: skip
    much = f"as many rows a rank as on {found[0].ranks[-1]} ranks" if weak else "the whole structure"
    figure.update_layout(_layout(f"{'Weak' if weak else 'Strong'} scaling: {much}", height=420))
    _by_ranks(figure, found[0].ranks)
    figure.update_yaxes(title="s/step", type="log")
    return figure


def _total(parts: Mapping[str, tuple[float, ...]], without: Collection[str] = ()) -> np.ndarray:
    """The sum of parts of steps, but for some.  # Shape: [numbers of ranks]"""
    return np.sum([each for name, each in parts.items() if name not in without], axis=0)  # type: ignore[no-any-return]


def _by_ranks(figure: go.Figure, ranks: Sequence[int]) -> None:
    """Make the numbers of ranks the x axis."""
    figure.update_xaxes(title="ranks", type="log", tickvals=ranks, ticktext=[str(n) for n in ranks])


def efficiency(found: Sequence[Scaling]) -> go.Figure:
    """Time on one rank over time on N ranks times N, with and without the work on the graph object."""
    figure = go.Figure()
    for each, tint in zip(found, itertools.cycle(OTHERS)):
        ranks, total, without = np.array(each.ranks), _total(each.strong), _total(each.strong, each.graph)
        for values, name, dash in ((total, each.device, "solid"), (without, f"{each.device}, without graph", "dash")):
            said = "%{x} ranks: %{y:.0%}<extra>" + escape(name) + "</extra>"
            figure.add_scatter(
                x=ranks, y=values[0] / values / ranks, name=name, mode="lines+markers", hovertemplate=said,
                line={"color": tint, "dash": dash},
            )  # fmt: skip
    figure.update_layout(_layout("Efficiency against one rank", height=420))
    _by_ranks(figure, found[0].ranks)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def growth(found: Growth, colour: Mapping[str, str]) -> go.Figure:
    """Rows of the fullest rank by number of ranks."""
    figure = go.Figure()
    for space, owned in found.owned.items():
        line = {"color": colour[space]}
        dashed = {**line, "dash": "dash"}
        figure.add_scatter(x=found.ranks, y=owned, name=f"{space}, owned", mode="lines+markers", line=line)
        if any(found.halo[space]):
            seen = [n or None for n in found.halo[space]]
            figure.add_scatter(x=found.ranks, y=seen, name=f"{space}, halo", mode="lines+markers", line=dashed)
    figure.update_layout(_layout("Rows of the fullest rank", height=420))
    _by_ranks(figure, found.ranks)
    figure.update_yaxes(title="rows", type="log")
    return figure


def held(found: Growth) -> go.Figure:
    """Memory and traffic of the fullest rank by number of ranks."""
    figure = go.Figure()
    shown = (("memory at the peak", found.memory), ("halo rows received", found.received),
             ("results received", found.results))  # fmt: skip
    for (name, values), tint in zip(shown, OTHERS, strict=False):
        figure.add_scatter(
            x=found.ranks, y=[v / 1e6 or None for v in values], name=name, mode="lines+markers", line={"color": tint}
        )
    figure.update_layout(_layout("Bytes of the fullest rank", height=420))
    _by_ranks(figure, found.ranks)
    figure.update_yaxes(title="MB", type="log")
    return figure


def _layout(title: str = "", height: int = 400) -> dict[str, Any]:
    return {
        "title": {"text": escape(title), "font": {"size": 15}, "x": 0.01, "xanchor": "left"},
        "height": height,
        "template": "plotly_white",
        "font": {"family": FONT, "size": 12, "color": "#1c2128"},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8a8f98", "activecolor": "#0b5cad"},
    }


def unit_of(bytes_: float) -> tuple[float, str]:
    """The size and the name of the unit in which a person reads so many bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, name) for size, name in units if bytes_ >= size), (1.0, "bytes"))


def amount(bytes_: float) -> str:
    """Bytes, in the unit in which a person reads them."""
    size, name = unit_of(bytes_)
    return f"{bytes_ / size:.3g} {name}"
