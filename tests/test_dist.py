"""What is built for a package index holds the whole package, also what checkouts reach through links."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = {
    (Path(where) / name).relative_to(ROOT).as_posix()
    for where, _, names in os.walk(ROOT / "distcompile", followlinks=True)
    for name in names
    if not name.endswith(".pyc")
}


def test_source_and_wheel_hold_the_package_and_nothing_else(tmp_path: Path) -> None:
    """The wheel is built of the unpacked source, as installers do that have no wheel."""
    pytest.importorskip("setuptools", minversion="77")  # which pyproject.toml asks for

    def build(kind: str, of: Path) -> Path:
        code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(tmp_path)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=of, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return tmp_path / done.stdout.splitlines()[-1]

    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("distcompile", "passes", "runtime"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    with tarfile.open(build("sdist", checkout)) as archive:
        archive.extractall(tmp_path, filter="data")
        (folder,) = {name.split("/")[0] for name in archive.getnames()}
        assert not [m.name for m in archive.getmembers() if m.issym() or m.islnk()]
    unpacked = tmp_path / folder
    outside = {"PKG-INFO", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in found if "egg-info/" not in name} == PACKAGE | outside
    with zipfile.ZipFile(build("wheel", unpacked)) as archive:
        assert {name for name in archive.namelist() if "dist-info/" not in name} == PACKAGE
    assert {"distcompile/passes/pipeline.py", "distcompile/runtime/world.py"} <= PACKAGE
    assert {"distcompile/passes/lower/components/prelude.h", "distcompile/py.typed"} <= PACKAGE
