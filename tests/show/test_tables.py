"""Tables are whole in a pipe, and upright where a terminal is too narrow for them."""

from __future__ import annotations

import pytest
from rich.table import Table

from distcompile.show.tables import show

HEADINGS = ("rank", "atoms owned + halo", "bonds owned + halo", "angles owned + halo", "MB exchanged")


def table() -> Table:
    found = Table(*HEADINGS, title="Ranks")
    for rank in range(2):
        found.add_row(str(rank), f"{rank}12 + 34", f"{rank}5600 + 780", f"{rank}901234 + 5678", "1.25")
    return found


def test_in_a_pipe_nothing_is_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show(table())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(heading in lines[2] for heading in HEADINGS)
    assert "1901234 + 5678" in lines[5]


def test_on_a_narrow_terminal_each_cell_has_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    show(table())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50
    for heading in HEADINGS:
        assert sum(heading in line for line in lines) == 2
    assert any("angles owned + halo" in line and "1901234 + 5678" in line for line in lines)
