"""`--json` prints one object and nothing else, `--quiet` results alone, for whatever a command does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import springs
import structures
from ase.io import read, write
from springs import SpringCalculator
from typer.testing import CliRunner

from distcompile.app.cli import app

TALKING = """
import sys
from springs import SpringCalculator

def make():
    print("hello from a package")
    return SpringCalculator()
"""
MODEL = """
import toys

def make():
    return toys.Pair().eval(), toys.random_graph(14, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "oxide.extxyz", structures.crystal((2, 1, 1)))
    shutil.copy(springs.__file__, tmp_path)
    (tmp_path / "talking.py").write_text(TALKING)
    (tmp_path / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def found(*arguments: str) -> dict[str, Any]:
    lines = said(*arguments, "--json").splitlines()
    assert len(lines) == 1, lines
    return json.loads(lines[0])  # type: ignore[no-any-return]


OXIDE = ("oxide.extxyz", "--calculator", "talking.py:make")


def test_an_evaluation(folder: Path) -> None:
    """Numbers in full, of the stock calculator; what packages print is not among them."""
    result, stock = found("run", *OXIDE, "--check"), read("oxide.extxyz")
    stock.calc = SpringCalculator()
    assert result["energy"] == pytest.approx(stock.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(result["stress"], stock.get_stress(), atol=1e-12)
    assert result["atoms"] == len(stock) == sum(rank["owned"]["atoms"] for rank in result["ranks"])
    assert result["differences"]["forces"][0] < 1e-12 < result["largest_force"]


def test_a_trajectory(folder: Path) -> None:
    result = found("run", *OXIDE, "--task", "md", "--steps", "3", "--trajectory", "t.extxyz", "--interval", "1")
    last = read("t.extxyz", "-1")
    assert (result["ensemble"], result["first_step"], result["steps"]) == ("nve", 0, 3)
    assert result["energy"] == pytest.approx(last.get_potential_energy(), abs=1e-6)
    assert result["temperature"] == pytest.approx(last.get_temperature(), rel=1e-5)


def test_a_plan(folder: Path) -> None:
    """Rows of ranks add up, and more ranks have less each."""
    result = found("plan", *OXIDE, "--ranks", "1,2", "--device", "a100")
    one, two = result["plans"]
    assert one["rows"]["atoms"] == {"owned": result["atoms"], "halo": 0}
    assert result["atoms"] / 2 <= two["rows"]["atoms"]["owned"] < result["atoms"]
    assert two["seconds"]["a100"]["total"] > two["seconds"]["a100"]["local"] > 0


def test_other_commands(folder: Path) -> None:
    explained = found("explain", *OXIDE, "--ranks", "2")
    assert {"atoms", "edges"} <= {space for space in json.dumps(explained).replace('"', " ").split() if space.isalpha()}
    checked = found("check", "mine.py:make", "--ranks", "1,2")
    assert checked["ok"] and checked["worst"] < 1e-12
    assert found("doctor")["models"]["sevenn"] == "not installed"


def test_results_alone(folder: Path) -> None:
    """No notes, and nothing of packages; the tables are there."""
    loud, quiet = (said("run", *OXIDE, "--task", "md", "--steps", "2", *more) for more in ((), ("-q",)))
    for note in ("hello from a package", "velocities are drawn"):
        assert note in loud and note not in quiet
    assert "steps 0 to 2, NVE" in quiet
