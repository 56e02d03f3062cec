"""The command line, as a user calls it: in a process of its own, from a folder of his own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import springs
import structures
from ase import Atoms
from ase.io import read, write
from springs import SpringCalculator
from typer.testing import CliRunner

from distcompile.app.cli import app


def distcompile(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``distcompile ARGUMENTS`` in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    environment |= {"COLUMNS": "120", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-m", "distcompile.app.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)


def refused(code: int, stdout: str, stderr: str) -> str:
    """The one line that a command said before it ended with exit code 1."""
    assert code == 1, stderr
    assert "Traceback" not in stdout + stderr
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("distcompile: ")
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a structure (MgO with a vacancy), a file that is none, and a calculator of the user's."""
    write(tmp_path / "oxide.extxyz", structures.crystal((2, 1, 1)))
    (tmp_path / "notes.extxyz").write_text("not a structure\n")
    shutil.copy(springs.__file__, tmp_path)
    return tmp_path


def stock_springs(atoms: Atoms) -> Atoms:
    """The user's calculator without distcompile."""
    atoms = atoms.copy()
    atoms.calc = SpringCalculator()
    return atoms


def test_chgnet_on_two_processes(folder: Path) -> None:
    """Energy and forces of the file that is written are those of the stock calculator; the report shows both ranks."""
    from chgnet.model.dynamics import CHGNetCalculator

    done = distcompile(
        folder, "run", "oxide.extxyz", "--calculator", "chgnet", "--ranks", "2", "--check", "-o", "out.extxyz"
    )
    assert done.returncode == 0, done.stderr
    stock = read(folder / "oxide.extxyz")
    stock.calc = CHGNetCalculator(use_device="cpu")
    found = read(folder / "out.extxyz")
    assert found.get_potential_energy() == pytest.approx(stock.get_potential_energy(), rel=2e-6)
    np.testing.assert_allclose(found.get_forces(), stock.get_forces(), atol=2e-4)
    np.testing.assert_allclose(found.get_stress(), stock.get_stress(), atol=2e-4)
    assert np.abs(found.get_forces()).max() > 0.1
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines()]
    owned = [int(row[1]) for row in rows if row[:1] in (["0"], ["1"]) and row[2:3] == ["+"]]
    assert len(owned) == 2
    assert sum(owned) == len(stock)
    assert min(owned) > 0
    assert done.stdout.count("Against the stock model") == 1  # one voice
    differences = {row[0]: float(row[1]) for row in rows if row[:1] in (["energy"], ["forces"]) and "e" in row[1]}
    assert differences.keys() == {"energy", "forces"}
    assert max(differences.values()) < 1e-3


def test_a_calculator_of_the_users(folder: Path) -> None:
    """A file in the working folder with an ASE calculator around a module; in float64 the results agree to rounding."""
    done = distcompile(folder, "run", "oxide.extxyz", "--calculator", "springs.py:SpringCalculator", "-o", "o.extxyz")
    assert done.returncode == 0, done.stderr
    found, stock = read(folder / "o.extxyz"), stock_springs(read(folder / "oxide.extxyz"))
    assert found.get_potential_energy() == pytest.approx(stock.get_potential_energy(), abs=1e-7)
    np.testing.assert_allclose(found.get_forces(), stock.get_forces(), atol=1e-7)  # 8 digits in the file
    assert re.search(r"graph objects\W+made by the package, so far", done.stdout)


def test_the_report_says_how_it_ran(folder: Path) -> None:
    """Whose graph objects, what code, how much memory; so does that of a trajectory."""
    options = ["oxide.extxyz", "--calculator", "springs.py:SpringCalculator", "--lowering", "eager"]
    for more in ([], ["--task", "md", "--steps", "2"]):
        done = distcompile(folder, "run", *options, *more)
        assert done.returncode == 0, done.stderr
        assert re.search(r"graph objects\W+made without the package, each rank its rows", done.stdout), done.stdout
        assert re.search(r"code\W+operators: (\d+) of \1 regions", done.stdout)
        assert re.search(r"memory\W+0\.00\d GB on the fullest rank", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.cif", "--calculator", "chgnet"], r"There is no file missing\.cif"),
        (["notes.extxyz", "--calculator", "springs.py:SpringCalculator"], r"ASE cannot read notes\.extxyz"),
        ([".", "--calculator", "springs.py:SpringCalculator"], "ASE cannot read"),
        (["oxide.extxyz", "--calculator", "chgnett"], "'chgnett' is neither one of chgnet, .* nor an import path"),
        (["oxide.extxyz", "--calculator", "springs.py:Missing"], "Cannot load .*Missing.* has no attribute"),
        (["oxide.extxyz", "--calculator", "spring.py:Springs"], r"Cannot load .*there is no file spring\.py"),
        (
            ["oxide.extxyz", "--calculator", "no_such_package:Springs"],
            "Cannot load .*No module named 'no_such_package'",
        ),
        (
            ["oxide.extxyz", "--calculator", "ase.calculators.emt:EMT"],
            "EMT holds no torch.nn.Module .* Pass the calculator",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """These run in this process: what a user reads is the same."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(done.exception, SystemExit), done.exception
    assert re.search(said, refused(done.exit_code, done.stdout, done.stderr))


SPRINGS = ["oxide.extxyz", "--calculator", "springs.py:SpringCalculator"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "--task", "md"], "--check compares one evaluation"),
        (["--checkpoint", "c.npz"], "use --checkpoint and --resume with --task md"),
        (["--task", "md", "--resume"], "say which with --checkpoint"),
        (["--task", "md", "--max-restarts", "2"], "say which with --checkpoint"),
        (["--task", "md", "--resume", "--checkpoint", "c.npz"], r"There is no checkpoint c\.npz to resume from"),
        (["--task", "md", "--checkpoint", "notes.extxyz"], "a checkpoint notes.extxyz already"),
        (["--task", "md", "--resume", "--checkpoint", "notes.extxyz"], "is no checkpoint, or was cut short"),
        (["--trajectory", "t.traj"], "One evaluation has no --trajectory"),
        (["--task", "md", "--trajectory", "t.vasp"], r"add frames to a file like 't\.vasp': use \.extxyz"),
        (["--task", "md", "--log", "nowhere/l.log"], "nowhere is no folder"),
        (["--task", "md", "--pressure", "1"], "--pressure acts on the cell"),
        (["--task", "relax", "--pressure", "1"], "--pressure acts on the cell"),
        (["--task", "md", "--ensemble", "nvt", "--temperature", "0"], "cannot hold 0 K"),
    ],
)
def test_options_that_do_not_go_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """Said in one line before any work."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["run", *SPRINGS, *arguments])
    assert isinstance(done.exception, SystemExit), done.exception
    assert re.search(said, refused(done.exit_code, done.stdout, done.stderr))


def test_structures_that_cannot_be_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Atoms on top of each other, a species that the calculator does not know: the step and the atom are named."""
    monkeypatch.chdir(folder)
    close, strange = read("oxide.extxyz"), read("oxide.extxyz")
    close.positions[3] = close.positions[8] + 0.1
    strange.numbers[6] = 54
    for atoms, said in ((close, r"Step 0: atoms 3 .* and 8 .* are 0\.173 A"), (strange, r"not know Xe \(atom 6\)")):
        write("oxide.extxyz", atoms)
        done = CliRunner().invoke(app, ["run", *SPRINGS])
        assert isinstance(done.exception, SystemExit), done.exception
        assert re.search(said, refused(done.exit_code, done.stdout, done.stderr))


BROKEN = """
import torch
from springs import SpringCalculator


class Fails(SpringCalculator):
    left = 0

    def calculate(self, atoms, *args, **options):
        self.left -= len(atoms) > 12  # smaller ones are looked at to learn from
        if self.left < 0:
            raise ValueError("no such table")
        super().calculate(atoms, *args, **options)
        self.results["energy"] += 1e-6 * atoms.positions[0, 0]  # so it is not learned, but calculated here


class FailsLater(Fails):
    left = 6


def raises():
    raise RuntimeError("the weights are gone")


def nothing():
    return None


def model():
    return torch.nn.Linear(3, 3), torch.ones(5, 4)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "-"], "There is no file -"),
        (
            ["run", "oxide.extxyz", "raises"],
            r"broken\.py:raises makes no calculator: RuntimeError: the weights are gone \(",
        ),
        (["run", "oxide.extxyz", "nothing"], "NoneType holds no torch.nn.Module"),
        (
            ["run", "oxide.extxyz", "Fails"],
            r"Step 0: the calculator fails .*: ValueError: no such table \(broken\.py, line",
        ),
        (
            ["run", "oxide.extxyz", "Fails", "--check"],
            "The stock calculator fails on this structure: ValueError: no such",
        ),
        (
            ["run", "oxide.extxyz", "FailsLater", "--task", "md", "--checkpoint", "c.npz", "--checkpoint-every", "1"],
            r"Step 6: the calculator fails: ValueError: .* --timestep .* The last checkpoint is c\.npz, of step 5\.",
        ),
        (
            ["run", "oxide.extxyz", "FailsLater", "--task", "relax"],
            "Step 6: the calculator fails: ValueError: .*--optim",
        ),
        (["plan", "oxide.extxyz", "Fails", "--ranks", "2"], "no such table"),
        (["plan", "oxide.extxyz", "raises", "--ranks", "2"], "the weights are gone"),
        (["plan", "oxide.extxyz", "Fails", "--ranks", "2", "--plot", "none/p.png"], "none is no folder"),
        (["plan", "oxide.extxyz", "Fails", "--ranks", "2", "--measured", "."], "it is a folder"),
        (["plan", "none.extxyz", "Fails", "--ranks", "2"], r"There is no file none\.extxyz"),
        (["check", "broken.py:raises"], r"broken\.py:raises: RuntimeError: the weights are gone \(broken\.py, line"),
        (["check", "broken.py:model"], r"broken\.py:model: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (["check", "syntax.py:model"], r"Cannot load 'model' from 'syntax\.py': .* was never closed"),
        (["check", "name.py:model"], r"Cannot load 'model' from 'name\.py': NameError: .* \(name\.py, line 1\)"),
    ],
)
def test_what_fails_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """Calculators, factories and models that raise whatever they raise."""
    (folder / "broken.py").write_text(BROKEN)
    (folder / "syntax.py").write_text("model = (\n")
    (folder / "name.py").write_text("model = modell\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    command, structure, *rest = arguments
    if command != "check":
        rest = ["--calculator", f"broken.py:{rest[0] if rest else 'Fails'}", *rest[1:]]
    done = CliRunner().invoke(app, [command, structure, *rest])
    assert isinstance(done.exception, SystemExit), done.exception
    assert re.search(said, refused(done.exit_code, done.stdout, done.stderr))


def test_npt_on_two_processes(folder: Path) -> None:
    """As ASE itself does it with the stock calculator; one voice; files of one writer."""
    from ase import units
    from ase.md.nose_hoover_chain import MTKNPT

    arguments = ["--task", "md", "--ensemble", "npt", "--temperature", "500", "--pressure", "2", "--steps", "25"]
    files = ["--trajectory", "t.traj", "--log", "l.log", "--interval", "5", "-o", "o.traj"]
    start = read(folder / "oxide.extxyz").repeat((1, 1, 2))
    start.set_momenta(np.random.default_rng(0).normal(size=(30, 3)))
    write(folder / "oxide.traj", start)
    done = distcompile(folder, "run", "oxide.traj", *SPRINGS[1:], *arguments, *files, "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("steps 0 to 25, NPT", done.stdout)) == 1
    assert re.search(r"NPT: step 25 of 25, .* ns/day, 00:00:00 left", done.stdout)
    atoms = stock_springs(start)
    MTKNPT(
        atoms, units.fs, temperature_K=500, pressure_au=2 * units.GPa, tdamp=100 * units.fs, pdamp=1000 * units.fs
    ).run(25)
    frames = read(folder / "t.traj", ":")
    assert len(frames) == 6
    found = read(folder / "o.traj")
    for last in (frames[-1], found):
        np.testing.assert_allclose(last.positions, atoms.positions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(last.cell, atoms.cell, rtol=0, atol=1e-8)
        assert last.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), rtol=0, atol=1e-10)
    assert len((folder / "l.log").read_text().splitlines()) == 7


def test_relaxation_of_a_supercell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--repeat, --relax-cell; what is written is relaxed."""
    monkeypatch.chdir(folder)
    options = ["--task", "relax", "--relax-cell", "--repeat", "1", "2", "1", "--fmax", "0.2", "-o", "o.extxyz"]
    done = CliRunner().invoke(app, ["run", *SPRINGS, *options])
    assert done.exit_code == 0, done.output
    assert re.search(r"relaxed in \d+ steps", done.stdout)
    found, start = read("o.extxyz"), read("oxide.extxyz")
    assert len(found) == 2 * len(start)
    assert np.linalg.norm(found.get_forces(), axis=1).max() < 0.2
    assert np.abs(found.cell[1] - 2 * start.cell[1]).max() > 0.01


def test_doctor() -> None:
    """Versions, what ranks talk through, the compiler, and the packages of this environment."""
    from importlib.metadata import version

    import torch

    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    rows = {row[1]: row[2] for row in (re.split(r" *│ *", line) for line in done.stdout.splitlines()) if len(row) > 3}
    assert rows["torch"] == torch.__version__
    assert rows["gloo"] == "available"
    assert rows["C++ compiler"] == (shutil.which("g++") or shutil.which("clang++"))
    assert rows["chgnet"] == f"{version('chgnet')}, works"
    assert rows["sevenn"] == "not installed"


def test_doctor_finds_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than processors, two kinds of OpenMP, no compiler: each with what to do."""
    from distcompile.app import doctor
    from distcompile.passes.lower.components import library

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert [what for what, _ in doctor.mistakes()] == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    monkeypatch.setattr(library, "compiler", lambda: None)
    found = dict(doctor.mistakes())
    assert re.search(r"4096 ranks of 1 threads share \d+ processors.*start \d+ ranks", found["threads"])
    assert "install g++" in found["compiler"]
    maps = "7f00-7f01 r-xp 0 08:01 5 /a/torch/lib/libgomp-98b2.so.1\n7f02-7f03 r-xp 0 08:01 6 /b/lib/libiomp5.so\n"
    assert doctor.openmp_runtimes(maps) == ["libgomp-98b2.so.1", "libiomp5.so"]
    assert doctor.openmp_runtimes("7f00-7f01 r-xp 0 00:00 0\n7f02-7f03 r-xp 0 08:01 6 /lib/libm.so.6\n") == []


@pytest.mark.parametrize("output", ["no_such_folder/o.extxyz", "o.unknown"])
def test_output_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    """Said in one line, as other mistakes are."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["run", "oxide.extxyz", "--calculator", "springs.py:SpringCalculator", "-o", output])
    assert isinstance(done.exception, SystemExit), done.exception
    assert output in refused(done.exit_code, done.stdout, done.stderr)


def test_a_mistake_on_two_processes_is_named_once(folder: Path) -> None:
    """One rank speaks for all, and torchrun adds nothing."""
    done = distcompile(folder, "run", "oxide.extxyz", "--calculator", "chgnett", "--ranks", "2")
    assert "'chgnett' is neither one of" in refused(done.returncode, done.stdout, done.stderr)


HEAVY = (
    "torch._inductor.compile_fx", "torch._inductor.codecache", "ase", "chgnet", "mace", "e3nn", "matgl", "fairchem",
    "sevenn", "nequip", "pymatgen", "scipy", "matplotlib", "pandas", "typer", "rich",
)  # fmt: skip
"""What is loaded when it is needed."""


def test_the_package_imports_quickly() -> None:
    """Notebooks and command lines import it; compilers and model packages are loaded when they are needed.

    The processor's time is compared with that of importing torch, which a busy machine stretches alike.
    """
    code = f"""
        import json, sys, time
        start = time.process_time()
        import torch
        between = time.process_time()
        import distcompile
        end = time.process_time()
        print(json.dumps([[name for name in {HEAVY} if name in sys.modules], between - start, end - between]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    loaded, torch_seconds, seconds = json.loads(done.stdout)
    assert not loaded
    assert seconds < 3 * torch_seconds
