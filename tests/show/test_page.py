"""The content of pages: each number on them against the program, the division or the prediction that it is about."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import springs
import structures
import undividable
from ase.io import write
from pages import RANKS, array, calculated, data_of, springs_page, toy
from toys import Gnn, random_graph
from typer.testing import CliRunner

import distcompile
from distcompile import LocalWorld
from distcompile.app.cli import app
from distcompile.app.explaining import page_of_plan
from distcompile.app.forecast import forecast
from distcompile.calculators.calculator import evaluated, load_calculator, statistics
from distcompile.ir import Placed, Split, Tiled
from distcompile.ir.writer import made_by
from distcompile.passes import NAMES
from distcompile.predict.account import collectives
from distcompile.show.html import page as pages
from distcompile.show.html.program import program
from distcompile.show.html.ranks import atoms, ranks
from distcompile.show.html.records import ONCE, Atoms, Line, Operator, Page, Pass, Program
from distcompile.show.html.regions import regions, timing

plotly = pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed")


def test_every_node_of_each_pass_is_listed() -> None:
    """Those of the index program, those of the graph or of the tiled graph, and those of the bodies of regions."""
    model, _, executor, _, _ = toy()
    history = model.history(executor)
    found = program(history)
    assert [each.name for each in found.passes] == ["capture", *NAMES]
    for (_, after), shown in zip(history, found.passes, strict=True):
        listed = {(o.part, o.name): o for o in shown.operators}
        assert len(listed) == len(shown.operators)
        nodes = {("", n.name): n for n in (after.tiled if isinstance(after, Tiled) else after.graph).graph.nodes}
        if isinstance(after, Split):
            nodes |= {(ONCE, n.name): n for n in after.index_program.graph.nodes}
        if isinstance(after, Tiled):
            for name, region in after.tiled.named_children():
                inner = region.graph_module.graph.nodes  # type: ignore[union-attr]
                nodes |= {(name, n.name): n for n in inner if n.op != "placeholder"}
        nodes = {key: n for key, n in nodes.items() if n.op != "output"}
        assert listed.keys() == nodes.keys()
        assert all(listed[key].made_by == made_by(n) for key, n in nodes.items())
        assert all(set(listed[key].inputs) == {i.name for i in n.all_input_nodes} for key, n in nodes.items())


def test_collectives_have_their_bytes_in_every_pass() -> None:
    """From the pass on that inserts them; those of the tiled graph are those of the graph."""
    model, _, executor, _, _ = toy()
    history = model.history(executor)
    for (_, after), shown in zip(history, program(history).passes, strict=True):
        expected = collectives(after) if isinstance(after, Placed) else []
        crossing = [o for o in shown.operators if o.crosses]
        assert sorted(o.row_bytes for o in crossing) == sorted(c.row_bytes for c in expected)
        assert all(c.why in " ".join(o.crosses for o in crossing) for c in expected)
    assert len(crossing) >= 4


def test_operators_name_their_spaces_and_lines() -> None:
    """Spaces from the pass on that finds them."""
    model, _, executor, _, _ = toy()
    found = program(model.history(executor))
    by_name = {p.name: p for p in found.passes}
    assert {o.space for o in by_name["hoist"].operators} == {""}
    assert {"atoms", "edges"} <= {o.space for o in by_name["infer_spaces"].operators}
    assert "f64[edges, 3]" in {o.gives for o in by_name["place"].operators}
    assert [name for name, _ in found.spaces] == ["atoms", "edges", "halo of atoms"]
    place = next(o.line for o in by_name["capture"].operators if o.operator == "linalg_vector_norm")
    line = found.lines[place]
    assert line.file.endswith("toys.py") and "norm" in dict(line.code)[line.number]


def test_rows_of_ranks_are_those_of_the_graph() -> None:
    """Halo atoms: those that edges of a rank's atoms begin at and that are another rank's, counted here by hand."""
    model, graph, executor, sizes, division = toy()
    found, stats = ranks(executor.running, sizes, division), model.stats(graph)
    sender, receiver = graph["edge_index"].numpy()
    owner = division.ranks["atoms"].numpy()
    cell, positions = graph["cell"].numpy(), graph["positions"].numpy()
    shown = atoms("atoms", division, positions, ["H"] * 60, cell)
    assert shown is not None and np.array_equal(shown.owner, owner)
    for rank in range(RANKS):
        read = set(sender[owner[receiver] == rank]) - set(np.flatnonzero(owner == rank))
        assert set(shown.halo[rank]) == read and len(shown.halo[rank]) == len(read) > 0
        assert found.owned["atoms"][rank] == (owner == rank).sum() == stats[rank]["owned"]["atoms"]
        assert found.owned["edges"][rank] == (owner[receiver] == rank).sum()
        assert found.halo["atoms"][rank] == len(read) == stats[rank]["halo"]["atoms"]
    assert atoms("edges", division, positions, ["H"] * 60, cell) is None


def test_bytes_between_ranks_are_those_of_the_statistics() -> None:
    """A rank's rows that others read, and those that it reads of others, each once for each collective."""
    model, graph, executor, sizes, division = toy()
    found, stats = ranks(executor.running, sizes, division), model.stats(graph)
    assert found.sent.sum(0).tolist() == [row["bytes"] for row in stats]
    assert not found.sent.diagonal().any() and found.sent[0, 1] > 0
    assert found.memory.tolist() == [row["peak_memory"] for row in stats]


def test_rows_that_every_rank_gathers_are_counted_too() -> None:
    """Of a stretch that runs whole: each rank receives the rows of all others."""
    model = distcompile.compile(
        undividable.Given(undividable.UNDIVIDABLE["a running sum over edges"][0]).eval(),
        random_graph(14, 1),
        world=LocalWorld(3),
        validate=False,
    )
    executor, prepared = model.prepared(random_graph(14, 1))
    division = executor.layout(prepared).division
    found = ranks(executor.running, prepared.sizes, division)
    gathered = [c for c in collectives(executor.running) if c.to_all]
    stats = model.stats(random_graph(14, 1))
    assert gathered and found.sent.sum(0).tolist() == [row["bytes"] for row in stats]
    edges, atoms_ = np.array(division.counts("edges")), np.array(division.counts("atoms"))
    least = sum(c.row_bytes * (edges if c.space == "edges" else atoms_) for c in gathered)
    assert all(
        (found.sent[owner, reader] >= least[owner]) for owner in range(3) for reader in range(3) if owner != reader
    )


def test_regions_hold_what_is_predicted_and_take_what_is_measured() -> None:
    """The fullest region is the predicted peak; every region is timed on every rank, and only within."""
    model, graph, executor, sizes, division = toy()
    with timing(executor) as seconds:
        model(graph)
    found = regions(executor, sizes, division, seconds)
    model(graph)
    assert max(r.tables + r.block for r in found) == max(row["peak_memory"] for row in model.stats(graph))
    assert [r.name for r in found] == list(seconds)
    assert all(len(r.seconds) == RANKS and min(r.seconds) > 0 for r in found)
    assert {r.space for r in found} == {"atoms", "edges", "halo of atoms"}
    assert {r.how for r in found} == {"operators"}
    bodies = {name: region.graph_module for name, region in executor.running.tiled.named_children()}  # type: ignore
    assert {r.name: r.operators for r in found} == {
        name: sum(n.op == "call_function" for n in body.graph.nodes) for name, body in bodies.items()
    }


def test_regions_that_run_in_step_are_one_bar() -> None:
    """On one rank; it holds what is predicted, and is timed."""
    graph = random_graph(60, 2)
    model = distcompile.compile(Gnn().eval(), random_graph(14, 1), world=LocalWorld(1), validate=False)
    model(graph)
    executor, prepared = model.prepared(graph)
    with timing(executor) as seconds:
        model(graph)
    found = regions(executor, prepared.sizes, executor.layout(prepared).division, seconds)
    assert {r.space for r in found if r.name.startswith("group_")} == {"edges, atoms"}
    assert not any("," in r.space for r in found if r.name.startswith("region_"))
    assert all(r.seconds[0] > 0 for r in found)
    assert max(r.tables + r.block for r in found) == model.stats(graph)[0]["peak_memory"]


def test_ranks_that_make_their_rows_have_the_division_that_is_drawn() -> None:
    """No rank holds that division; rows and bytes in it are those that ranks report."""
    calculator, structure = calculated()
    last, stats = evaluated(calculator), statistics(calculator)
    assert last is not None and last.layout is not None and "graph_memory" in stats[0]
    content = springs_page()
    assert content.ranks is not None and content.atoms is not None and content.ranks.method == "by positions"
    for rank, row in enumerate(stats):
        assert {name: n[rank] for name, n in content.ranks.owned.items()} == row["owned"]
        assert {name: n[rank] for name, n in content.ranks.halo.items()} == row["halo"]
        assert content.ranks.sent[:, rank].sum() == row["bytes"]
        assert content.ranks.memory[rank] == row["peak_memory"] - row["graph_memory"]
    assert len(content.atoms.owner) == len(structure)


def test_the_layout_is_the_one_that_was_learned() -> None:
    content = springs_page()
    assert content.layout is not None
    assert content.layout.said == "Graph objects are made without the package, each rank its rows."
    assert content.layout.rows == (("atoms", "of the structure"), ("edges", "within 3.4 A"))
    assert ("graph['edge_index']", "i64[2, edges]", "first atom, second atom") in content.layout.tensors
    assert ("graph['oxygen']", "b8[atoms]", "table of species") in content.layout.tensors


class Elements(HTMLParser):
    """The elements of a page, their attributes, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


@plotly
def test_the_page_is_of_one_piece() -> None:
    """It refers to nothing outside of it, and may not; all that its script looks for is there."""
    html = pages.page(springs_page())
    found = Elements(html)
    for tag, attributes in found.elements:
        assert tag != "iframe" and "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:"))  # type: ignore[union-attr]
    policy = [a["content"] for tag, a in found.elements if "http-equiv" in a]
    assert len(policy) == 1 and "default-src 'none'" in policy[0] and "http" not in policy[0]  # type: ignore[operator]
    data = data_of(html)
    places = {a["data-figure"] for _, a in found.elements if "data-figure" in a}
    assert places | {"division"} == set(data["figures"])
    assert {"program", "ranks", "regions", "layout"} <= {a.get("id") for _, a in found.elements}
    assert len(html) < 8e6


@plotly
def test_the_list_of_the_page_is_the_program() -> None:
    """Each operator and each text once, and every pass whole."""
    content = springs_page()
    assert content.program is not None
    listed = data_of(pages.page(content))["program"]
    texts, rows = listed["texts"], listed["operators"]
    assert len(set(texts)) == len(texts) and len({str(row) for row in rows}) == len(rows)
    for each, shown in zip(content.program.passes, listed["passes"], strict=True):
        assert [texts[rows[i][1]] for i in shown["operators"]] == [o.name for o in each.operators]
        assert [texts[rows[i][5]] for i in shown["operators"]] == [o.made_by for o in each.operators]
    capture, normalize = listed["passes"][:2]
    before, after = ({texts[listed["operators"][i][1]] for i in p["operators"]} for p in (capture, normalize))
    assert (normalize["come"], normalize["gone"]) == (len(after - before), len(before - after))


@plotly
def test_bars_and_points_are_the_numbers_of_the_records() -> None:
    content = springs_page()
    assert content.ranks is not None and content.atoms is not None
    figures = data_of(pages.page(content))["figures"]
    drawn = {(t["meta"]["role"], *t["meta"].get("ranks", [])): t for t in figures["division"]["data"]}
    for rank in range(RANKS):
        mine = content.atoms.positions[content.atoms.owner == rank]
        assert np.allclose(array(drawn["owned", rank]["x"]), mine[:, 0], atol=1e-3)
        halo = content.atoms.positions[content.atoms.halo[rank]]
        assert np.allclose(array(drawn["halo", rank]["z"]), halo[:, 2], atol=1e-3)
        assert drawn["halo", rank]["visible"] is False
    assert ("message", 0, 1) in drawn
    bars = {(t["name"], t["marker"]["color"]): array(t["y"]).tolist() for t in figures["rows"]["data"]}
    colour = data_of(pages.page(content))["program"]["spaces"]
    for space in colour[:2]:
        assert bars["owned", space["colour"]] == content.ranks.owned[space["name"]].tolist()
    assert bars["read of others", colour[0]["colour"]] == content.ranks.halo["atoms"].tolist()
    heights = [array(trace["y"]) for trace in figures["memory"]["data"][:2]]
    assert np.allclose(sum(heights).max() * 1e6, content.ranks.memory.max())
    assert np.allclose(array(figures["traffic"]["data"][0]["z"]).reshape(RANKS, RANKS) * 1e3, content.ranks.sent)


HOSTILE = "</script><script>alert(1)</script><b>&amp;<!--"


@plotly
def test_texts_of_the_user_stay_texts() -> None:
    """In the page, in its data and in its figures, wherever they come from."""
    harmless = springs_page()
    assert harmless.atoms is not None and harmless.program is not None and harmless.layout is not None
    operator = Operator("", "x", HOSTILE, HOSTILE, "", HOSTILE, "line", HOSTILE, (HOSTILE,), HOSTILE, 8)
    content = dataclasses.replace(
        harmless,
        title=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
        program=Program(
            (*harmless.program.spaces, (HOSTILE, HOSTILE)),
            (Pass("capture", "capture", (operator,)),),
            {"line": Line(HOSTILE, 1, ((1, HOSTILE),))},
        ),
        ranks=None,
        atoms=None,
        regions=(),
        layout=dataclasses.replace(harmless.layout, rows=(), said=HOSTILE),
    )
    html = pages.page(content)
    found = Elements(html)
    assert [tag for tag, _ in found.elements].count("script") == 3
    assert not any(tag == "b" for tag, _ in found.elements)
    assert HOSTILE in found.text
    listed = data_of(html)["program"]
    assert HOSTILE in listed["texts"] and listed["lines"]["line"][2] == [[1, HOSTILE]]
    assert html.count("alert(1)") == html.count("script&gt;alert(1)") + html.count("script\\u003ealert(1)")


@plotly
def test_large_structures_are_thinned_and_say_so() -> None:
    from distcompile.show.html import figures

    content = springs_page()
    n = 2 * figures.DRAWN + 1
    random = np.random.default_rng(0)
    owner = random.integers(0, RANKS, n)
    many = Atoms(random.random((n, 3)), ("H",) * n, np.eye(3), owner, tuple(np.arange(300) for _ in range(RANKS)))
    html = pages.page(dataclasses.replace(content, atoms=many))
    traces = data_of(html)["figures"]["division"]["data"]
    for rank in range(RANKS):
        (trace,) = [t for t in traces if t["meta"] == {"role": "owned", "ranks": [rank]}]
        assert len(array(trace["x"])) == -(-int((owner == rank).sum()) // 3)
        assert f"{(owner == rank).sum()} atoms" in trace["name"]
    assert "One of 3 atoms is drawn." in html
    assert "atoms is drawn" not in pages.page(content)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a structure and a calculator."""
    write(tmp_path / "oxide.extxyz", structures.crystal((2, 1, 1)))
    (tmp_path / "springs.py").write_text(Path(springs.__file__).read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPLAIN = ["explain", "oxide.extxyz", "--calculator", "springs.py:SpringCalculator", "--ranks", "2"]


@plotly
def test_the_command_prints_and_writes_a_page(folder: Path) -> None:
    done = CliRunner().invoke(app, [*EXPLAIN, "--html", "page.html"])
    assert done.exit_code == 0, done.output
    assert "Index spaces" in done.stdout and "Page written to page.html." in done.stdout
    html = (folder / "page.html").read_text()
    formula = structures.crystal((2, 1, 1)).get_chemical_formula(empirical=True)
    assert f"<h1>{formula}, springs.py:SpringCalculator, 2 ranks</h1>" in html
    assert len(data_of(html)["figures"]["division"]["data"]) == 1 + RANKS + RANKS + 1 + 1


@pytest.mark.parametrize("command", [EXPLAIN, ["plan", *EXPLAIN[1:]]])
def test_without_plotly_the_cure_is_named(command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is compiled."""
    there: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "plotly" else there(name, *more)
    )
    monkeypatch.setattr("distcompile.app.jobs.read_structure", None)
    done = CliRunner().invoke(app, [*command, "--html", "page.html"])
    assert done.exit_code == 1
    assert done.stderr.strip() == (
        "distcompile: Pages are made with plotly, which is not installed here: pip install plotly."
    )
    assert not (folder / "page.html").exists()


@plotly
def test_a_plan_is_drawn_as_it_is_printed(folder: Path) -> None:
    """Seconds of a step, its parts one upon the other, rows and bytes of the fullest rank."""
    atoms_ = structures.crystal((2, 2, 1))
    found = forecast(atoms_, load_calculator("springs.py:SpringCalculator"), [2, 4], ["a100"], None)
    content = page_of_plan(found, "springs")
    assert isinstance(content, Page) and content.growth is not None
    html = pages.page(content)
    figures = data_of(html)["figures"]
    assert set(figures) == {"strong", "weak", "efficiency", "growth", "held", "parts0", "parts1"}
    for curve, name, steps in (
        ("strong", "parts0", [c.steps[0] for c in found.columns]),
        ("weak", "parts1", found.weak[0]),
    ):
        bars = [array(t["y"]) for t in figures[name]["data"] if t["type"] == "bar"]
        assert np.allclose(np.sum(bars, axis=0), [s.total for s in steps])
        total, without, ideal = (array(t["y"]) for t in figures[curve]["data"])
        assert np.allclose(total, [s.total for s in steps]) and np.allclose(without, [s.evaluation for s in steps])
        numbers = [1 if curve == "weak" else c.ranks.parts for c in found.columns]
        assert np.allclose(ideal, [steps[0].evaluation / n for n in numbers])
    lines = {t["name"]: t for t in figures["growth"]["data"]}
    assert array(lines["atoms, owned"]["y"]).tolist() == [c.ranks.spaces["atoms"].owned.max() for c in found.columns]
    one = found.columns[0].steps[0]
    expected = [one.total / c.steps[0].total / c.ranks.parts for c in found.columns]
    assert np.allclose(array(figures["efficiency"]["data"][0]["y"]), expected)
    assert found.devices[0].basis in Elements(html).text
