"""Imports point one way: a folder uses those below it, and no folder those above."""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import distcompile

ROOT = Path(distcompile.__file__).parent

LAYERS = (
    "errors",
    "torch_versions",
    "default_device",
    "files",
    "ir",
    "runtime",
    "rules",
    "capture",
    "passes",
    "predict",
    "show",
    "check",
    "few_rows",
    "outside",
    "model",
    "api",
    "training",
    "pieces",
    "backend",
    "testing",
    "layout",
    "calculators",
    "derivatives",
    "lammps",
    "app",
)
"""Folders and modules of the package, the lowest first."""

STAGES = ("normalize", "simplify", "spaces", "halos", "schedule", "lower", "spec", "pipeline")
"""Folders of ``passes``, in the order in which their passes run, what programs keep
to between them, and the order."""


def sources(folder: Path) -> Iterator[Path]:
    """All Python files in a folder, also behind links to folders."""
    for where, _, names in os.walk(folder, followlinks=True):
        yield from (Path(where) / name for name in names if name.endswith(".py"))


def imports(path: Path, package: str) -> Iterator[str]:
    """Modules of `package` that a file imports, also within functions, as dotted names below it."""
    here = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            yield from (".".join([*node.module.split(".")[1:], alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix(f"{package}.") for a in node.names if a.name.startswith(f"{package}."))


def upwards(folder: Path, layers: tuple[str, ...], below: str) -> list[str]:
    """Imports of files in a folder that point to a later layer of it."""
    found = []
    for path in sources(folder):
        layer = path.relative_to(folder).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        for module in imports(path, "distcompile"):
            target = module.removeprefix(below).split(".")[0] if module.startswith(below) else ""
            if target in layers and layers.index(target) > layers.index(layer):
                found.append(f"{path.relative_to(ROOT)} imports {module}")
    return found


@pytest.mark.parametrize(("folder", "layers", "below"), [(ROOT, LAYERS, ""), (ROOT / "passes", STAGES, "passes.")])
def test_folders_import_only_what_lies_below_them(folder: Path, layers: tuple[str, ...], below: str) -> None:
    """The tracer knows nothing of the passes, a stage nothing of the next one, and nobody of the command line."""
    assert upwards(folder, layers, below) == []


@pytest.mark.parametrize(("folder", "layers"), [(ROOT, LAYERS), (ROOT / "passes", STAGES)])
def test_every_folder_has_its_place_in_the_order(folder: Path, layers: tuple[str, ...]) -> None:
    """What is not listed would not be looked at."""
    found = {p.name.removesuffix(".py") for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == set(layers)


def test_the_runtime_knows_only_the_vocabulary() -> None:
    """So that what runs a program can be read without the compiler."""
    for path in sources(ROOT / "runtime"):
        assert {module.split(".")[0] for module in imports(path, "distcompile")} <= {"ir", "errors", "runtime"}, path


def test_operators_are_written_in_one_place() -> None:
    """Which notes the value, the placement and the pass that made them."""
    writers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("passes", "rules", "ir")
        for path in sources(ROOT / folder)
        if ".call_function(" in path.read_text()
    ]
    assert writers == ["ir/writer.py"]


def test_an_import_that_points_upwards_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its form."""
    (tmp_path / "ir").mkdir()
    lines = ("from ..app.cli import app", "from distcompile.app import cli", "import distcompile.app.cli")
    for i, line in enumerate(lines):
        (tmp_path / "ir" / f"m{i}.py").write_text(f"def f():\n    {line}\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(upwards(tmp_path, LAYERS, "")) == len(lines)


def test_no_name_hides_a_folder() -> None:
    """An attribute of a package that is called as one of its folders or modules is that folder or module."""
    for path in sources(ROOT):
        *package, name = [*path.relative_to(ROOT).parts[:-1], *([path.stem] if path.stem != "__init__" else [])] or [""]
        found = getattr(importlib.import_module(".".join(["distcompile", *package])), name, None)
        assert found is None or isinstance(found, ModuleType), f"{'.'.join(package)}.{name} is {found}"
