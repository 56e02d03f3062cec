"""Pages in a browser without a window: they open, draw, answer to clicks and filters, and complain of nothing.

Chromium, its driver and selenium are needed; where one is missing these tests are skipped. On Debian, `apt-get install
chromium chromium-driver`, then `make test-browser`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structures
from pages import RANKS, springs_page

from distcompile.app.explaining import page_of_plan
from distcompile.app.forecast import forecast
from distcompile.calculators.calculator import load_calculator
from distcompile.show.html.page import page

pytest.importorskip("plotly")
selenium = pytest.importorskip("selenium")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("there is no chromium, or no chromedriver", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window, which draws in 3D without a graphics card."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1100"):
        options.add_argument(argument)
    for argument in ("--enable-unsafe-swiftshader", "--use-angle=swiftshader"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = Chrome(options=options, service=ChromeService(DRIVER))
    found.set_script_timeout(120)
    found.set_page_load_timeout(120)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a calculator."""
    path: Path = tmp_path_factory.mktemp("pages") / "page.html"
    path.write_text(page(springs_page()))
    return path


@pytest.fixture
def opened(browser: Any, html: Path) -> Iterator[Any]:
    """A browser that shows it. No test leaves an error in its console, and nothing was fetched."""
    browser.get(html.as_uri())
    yield browser
    assert said(browser) == []


def said(browser: Any) -> list[str]:
    """Errors in the console, and what the page fetched."""
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    return [*errors, *(name for name in fetched if not name.startswith("data:"))]


def ask(browser: Any, script: str, *given: Any) -> Any:
    """The value of an expression in the page."""
    return browser.execute_script(f"return {script}", *given)


def put(browser: Any, element: str, value: str) -> None:
    """Choose or type, as a reader does."""
    ask(
        browser,
        "[...arguments].slice(0, 1).map((id) => { const e = document.getElementById(id); e.value = arguments[1];"
        " e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })",
        element,
        value,
    )


def shown(browser: Any) -> list[str]:
    """The operators in sight in the list."""
    return ask(browser, "[...document.querySelectorAll('#rows .row > span:first-child')].map((s) => s.textContent)")  # type: ignore[no-any-return]


def test_everything_is_drawn(opened: Any) -> None:
    """Each place for a figure holds one, with the points and bars that it is to have."""
    content = springs_page()
    assert content.program is not None and content.ranks is not None and content.atoms is not None
    places = ask(
        opened, "[...document.querySelectorAll('.figure')].map((p) => [p.id || p.dataset.figure, p.innerText])"
    )
    assert len(places) == 7
    drawn = ask(
        opened, "[...document.querySelectorAll('.figure')].filter((p) => p.querySelector('.main-svg, canvas')).length"
    )
    assert drawn == len(places)
    assert ask(opened, "document.querySelectorAll('#passes .bars path').length") == len(content.program.passes)
    assert ask(opened, "document.querySelectorAll('[data-figure=memory] .bars path').length") >= len(content.regions)
    assert ask(opened, "document.querySelectorAll('[data-figure=traffic] .hm image').length") == 1
    assert ask(opened, "document.querySelector('#division canvas').width") > 300
    owned = "document.getElementById('division')._fullData.filter((t) => t.meta && t.meta.role === 'owned')"
    assert ask(opened, f"{owned}.map((t) => t.x.length)") == np.bincount(content.atoms.owner).tolist()


def test_the_picture_of_atoms_is_not_empty(opened: Any) -> None:
    """The pixels that WebGL drew are not all alike."""
    picture = ask(opened, "Plotly.toImage('division', {format: 'png', width: 400, height: 300})")
    empty = ask(
        opened,
        "Plotly.toImage({data: [], layout: document.getElementById('division').layout},"
        " {format: 'png', width: 400, height: 300})",
    )
    assert len(picture) > 3 * len(empty)


def test_a_click_shows_an_operator(opened: Any) -> None:
    """Its name, its arguments as links, the pass, the line of the model; a link leads to another operator."""
    put(opened, "pass", "0")
    put(opened, "words", "norm")
    row = "[...document.querySelectorAll('#rows .row')].find((r) => r.textContent.includes('linalg_vector_norm'))"
    ask(opened, f"{row}.click()")
    details = ask(opened, "document.getElementById('details').innerText")
    assert "the model (capture)" in details and "springs.py:" in details
    assert "lengths = vectors.norm(dim=-1)" in ask(opened, "document.querySelector('#details .here').textContent")
    target = ask(opened, "document.querySelector('#details a').textContent")
    ask(opened, "document.querySelector('#details a').click()")
    assert ask(opened, "document.querySelector('#details h3').textContent") == target


def test_filters_leave_what_they_say(opened: Any) -> None:
    """Words, spaces, messages, and what a pass wrote; against the records."""
    content = springs_page()
    assert content.program is not None
    last = content.program.passes[-1].operators
    count = "document.getElementById('count').textContent"
    assert ask(opened, count) == f"{len(last)} of {len(last)}"
    put(opened, "space", "edges")
    edges = sum(o.space == "edges" for o in last)
    assert 0 < edges < len(last) and ask(opened, count) == f"{edges} of {len(last)}"
    put(opened, "space", "")
    put(opened, "words", "region_1 mul")
    assert 0 < len(shown(opened)) == sum("mul" in o.operator and o.part == "region_1" for o in last)
    put(opened, "words", "")
    ask(opened, "document.getElementById('crossing').click()")
    crossing = [o for o in last if o.crosses]
    rows = shown(opened)
    assert len(rows) == len(crossing) == 2
    assert all(f"{o.row_bytes} B" in row for o, row in zip(crossing, rows, strict=True))
    ask(opened, "document.getElementById('crossing').click()")
    at = [p.name for p in content.program.passes].index("insert_halos")
    put(opened, "pass", str(at))
    ask(opened, "document.getElementById('new').click()")
    wrote = sum(o.made_by == "insert_halos" for o in content.program.passes[at].operators)
    assert ask(opened, count).startswith(f"{wrote} of ") and wrote > 0


def test_long_programs_are_scrolled_through(opened: Any) -> None:
    """The last operator comes into sight; only what is in sight is in the page."""
    content = springs_page()
    assert content.program is not None
    ask(opened, "document.getElementById('list').scrollTo(0, 1e9)")
    ask(opened, "document.getElementById('list').dispatchEvent(new Event('scroll'))")
    assert content.program.passes[-1].operators[-1].operator in shown(opened)[-1]
    assert len(shown(opened)) < 25 < len(content.program.passes[-1].operators)


def test_one_rank_is_shown_with_its_halo(opened: Any) -> None:
    visible = "document.getElementById('division').data.filter((t) => t.visible !== false).map((t) => t.meta)"
    assert sum(m["role"] == "owned" for m in ask(opened, visible)) == RANKS
    put(opened, "rank", "1")
    roles = sorted((m["role"], m.get("ranks")) for m in ask(opened, visible))
    assert ("halo", [1]) in roles and ("owned", [1]) in roles and ("owned", [0]) not in roles
    assert ("message", [0, 1]) in roles
    ask(opened, "document.getElementById('lines').click()")
    assert all(m["role"] != "message" for m in ask(opened, visible))


def test_a_plan_is_drawn(browser: Any, tmp_path: Path) -> None:
    """Both scalings, the efficiency, rows and bytes."""
    (tmp_path / "springs.py").write_text((Path(__file__).parent.parent / "springs.py").read_text())
    calculator = load_calculator(f"{tmp_path / 'springs.py'}:SpringCalculator")
    found = forecast(structures.crystal((2, 2, 1)), calculator, [2, 4], ["a100"], None)
    (tmp_path / "plan.html").write_text(page(page_of_plan(found, "springs")))
    browser.get((tmp_path / "plan.html").as_uri())
    assert ask(browser, "document.querySelectorAll('#scaling .figure:has(.main-svg)').length") == 7
    assert ask(browser, "document.querySelectorAll('[data-figure=parts0] .bars path').length") >= 6
    assert said(browser) == []
