"""Files that are written: only with results of the run, and never at the cost of what was there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import springs
import structures
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.io import read, write
from springs import SpringCalculator
from typer.testing import CliRunner

from distcompile.app.cli import app
from distcompile.app.device_files import read_device, write_device
from distcompile.app.dynamics import Ensemble, Md, Output, Relaxation, relax, run_md
from distcompile.app.files import labelled, unwritable
from distcompile.files import replacing
from distcompile.predict.planning import DEVICES

SPRINGS = ["--calculator", "springs.py:SpringCalculator"]


def of_another_method() -> Atoms:
    """A structure that carries results of another code in every way that files have, and notes of its owner's."""
    atoms = structures.crystal((1, 1, 1))
    results = {"energy": 1e3, "forces": np.full((7, 3), 7.0), "stress": np.full(6, 7.0), "dipole": np.ones(3)}
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info |= {"energy": -1.0, "free_energy": -1.0, "virial": np.eye(3), "Stress": np.eye(3)}
    atoms.info |= {"REF_energy": -2.0, "sample": "A7", "charge": 0}
    atoms.arrays |= {"forces": np.full((7, 3), 5.0), "magmoms": np.ones(7), "site": np.arange(7)}
    return atoms


NOTES = {"REF_energy": -2.0, "sample": "A7", "charge": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a structure that carries results of another code, and a calculator."""
    write(tmp_path / "labelled.traj", of_another_method())
    shutil.copy(springs.__file__, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_ours(found: Atoms) -> None:
    """The results of a structure are those of the calculator, and no others; its owner's notes are there."""
    stock = found.copy()
    stock.calc = SpringCalculator()
    assert found.info == NOTES
    assert set(found.calc.results) == {"energy", "forces", "stress"}
    assert found.get_potential_energy() == pytest.approx(stock.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found.get_forces(), stock.get_forces(), atol=1e-6)
    np.testing.assert_allclose(found.get_stress(), stock.get_stress(), atol=1e-6)
    assert "magmoms" not in found.arrays


@pytest.mark.parametrize("output", ["old.extxyz", "old.traj", "labelled.traj", "old.xyz.gz"])
def test_results_of_this_run_only(folder: Path, output: str) -> None:
    """Over a file of other content, over the input too."""
    before = set(os.listdir()) | {output}
    Path("old.extxyz").write_text("of last year\n")
    done = CliRunner().invoke(app, ["run", "labelled.traj", *SPRINGS, "-o", output])
    assert done.exit_code == 0, done.output
    check_ours(read(output))
    assert set(os.listdir()) - {"__pycache__"} == before | {"old.extxyz"}


def test_frames_hold_results_of_this_run_only(tmp_path: Path) -> None:
    for name in ("relaxed", "moved"):
        atoms = of_another_method()
        atoms.calc = SpringCalculator()
        files = Output(tmp_path / f"{name}.traj", interval=2)
        if name == "moved":
            run_md(atoms, Md(steps=4), files, lambda _: None)
        else:
            relax(atoms, Relaxation(steps=4), files, lambda _: None)
        frames = read(tmp_path / f"{name}.traj", ":")
        assert len(frames) == 3
        for frame in frames:
            check_ours(frame)
        np.testing.assert_array_equal(frames[-1].positions, atoms.positions)
        assert atoms.info["energy"] == -1.0, "what the calculator may read from a structure stays there"


def test_a_write_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the file: one line, the old file as it was, no litter."""
    Path("old.extxyz").write_text("of last year\n")
    before = sorted(os.listdir())

    def fails(path: Any, *_: Any, **__: Any) -> None:
        Path(path).write_text("half of")
        raise KeyError("energy")

    monkeypatch.setattr("ase.io.write", fails)
    done = CliRunner().invoke(app, ["run", "labelled.traj", *SPRINGS, "-o", "old.extxyz"])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"distcompile: Results cannot be written to old\.extxyz: KeyError: 'energy' .* What was there still is\.", line
    )
    assert "energy" in done.stdout, "the work of the run is not lost"
    assert Path("old.extxyz").read_text() == "of last year\n"
    assert [n for n in sorted(os.listdir()) if n != "__pycache__"] == before


def test_replacing(tmp_path: Path) -> None:
    """Links and modes stay; what is not finished does not count."""
    old, link = tmp_path / "old.txt", tmp_path / "link.txt"
    old.write_text("old")
    old.chmod(0o640)
    link.symlink_to(old)
    with pytest.raises(ZeroDivisionError), replacing(link) as unfinished:
        unfinished.write_text("new")
        1 / 0  # noqa: B018
    assert old.read_text() == "old"
    with replacing(link) as unfinished:
        unfinished.write_text("new")
        assert unfinished.suffix == ".txt"
        assert old.read_text() == "old"
    assert link.is_symlink()
    assert old.read_text() == "new"
    assert old.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.txt", "old.txt"]


def test_unwritable(tmp_path: Path) -> None:
    """Folders, devices that would be replaced, places that are not there."""
    assert "it is a folder, not a file" in unwritable(tmp_path)
    assert "it is a device, not a file" in unwritable(Path("/dev/null"))
    assert unwritable(Path("/dev/null"), replaced=False) == ""
    assert f"{tmp_path / 'none'} is no folder" in unwritable(tmp_path / "none" / "o.traj")
    assert unwritable(tmp_path / "o.traj") == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "md", "--trajectory", "old.traj"], r"There is a trajectory old\.traj already"),
        (["--task", "relax", "--trajectory", "old.traj"], r"There is a trajectory old\.traj already"),
        (["--task", "relax", "--trajectory", "a.traj", "-o", "a.traj"], "are the same file"),
        (["--task", "md", "--log", "labelled.traj"], "are the same file"),
        (["--task", "md", "--log", "l.log", "--checkpoint", "./l.log"], "are the same file"),
        (["-o", "folder.traj"], r"Results cannot be written to folder\.traj: it is a folder"),
    ],
)
def test_files_that_would_be_lost(folder: Path, arguments: list[str], said: str) -> None:
    """Refused before any work; nothing is changed."""
    Path("old.traj").write_bytes(b"three days of work")
    Path("folder.traj").mkdir()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    done = CliRunner().invoke(app, ["run", "labelled.traj", *SPRINGS, *arguments])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert re.search(said, line)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_restart_before_the_first_checkpoint_starts_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trajectory of the try that failed is this run's own."""
    Path("t.traj").write_bytes(b"what the first try wrote")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    options = ["--task", "md", "--steps", "2", "--interval", "1", "--trajectory", "t.traj", "--checkpoint", "c.npz"]
    done = CliRunner().invoke(app, ["run", "labelled.traj", *SPRINGS, *options])
    assert done.exit_code == 0, done.output
    assert len(read("t.traj", ":")) == 3


def test_logs_are_added_to(tmp_path: Path) -> None:
    """Of a run that goes on, what comes after the checkpoint is written anew; of runs before it, nothing is."""
    log, other = tmp_path / "md.log", "of another run\nTime[ps]  of another run\n"
    log.write_text(other)

    def run(steps: int, **options: Any) -> None:
        atoms = structures.crystal((1, 1, 1))
        atoms.calc = SpringCalculator()
        how = Md(Ensemble.nvt, steps, checkpoint=tmp_path / "c.npz", checkpoint_every=4)
        run_md(atoms, how, Output(log=log, interval=1), lambda _: None, **options)

    run(6)
    log.write_text(log.read_text() + "0.007 a step after the checkpoint\n")
    run(8, resume=True)
    assert log.read_text().startswith(other)
    times = [line.split()[0] for line in log.read_text().splitlines()[2:]]
    assert times == ["Time[ps]", *(f"{1e-3 * step:.4f}" for step in range(9))]


def test_figures_of_a_machine_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.json"
    write_device(path, DEVICES["a100"])
    monkeypatch.setattr(Path, "write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_device(path, DEVICES["h100"])
    assert read_device(path) == DEVICES["a100"]
    assert [p.name for p in tmp_path.iterdir()] == ["node.json"]


def test_symmetry_is_kept(folder: Path) -> None:
    """A constraint that cannot be repeated holds in a relaxation, and is written."""
    atoms = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    atoms.set_constraint(FixSymmetry(atoms))
    write("symmetric.traj", atoms)
    options = ["--task", "relax", "--relax-cell", "--fmax", "0.01", "-o", "relaxed.traj"]
    done = CliRunner().invoke(app, ["run", "symmetric.traj", *SPRINGS, *options])
    assert done.exit_code == 0, done.output
    found = read("relaxed.traj")
    assert isinstance(found.constraints[0], FixSymmetry)
    assert np.ptp(found.cell.lengths()) < 1e-9
    assert abs(found.cell.lengths()[0] - atoms.cell.lengths()[0]) > 1e-3


def test_labels_are_of_one_structure() -> None:
    """Six numbers of stress from nine; what ASE has no name for is left out."""
    atoms = of_another_method()
    results = {"energy": 1.0, "forces": np.ones((7, 3)), "stress": np.diag([1.0, 2.0, 3.0]), "crystal_fea": np.ones(9)}
    found = labelled(atoms, results)
    assert found.info == NOTES
    assert set(found.arrays) == {"numbers", "positions", "site"}
    assert set(found.calc.results) == {"energy", "forces", "stress"}
    np.testing.assert_array_equal(found.get_stress(), [1, 2, 3, 0, 0, 0])
