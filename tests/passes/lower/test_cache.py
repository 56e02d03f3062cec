"""Generated code is kept where nobody else can put any, and is found again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import toys
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

import distcompile
from distcompile import CacheError
from distcompile.passes.lower import cache, lower

CHOICE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of a user who chose nothing."""
    for name in (CHOICE, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_in_the_home_of_the_user(home: Path) -> None:
    """For him alone, whatever his umask; Inductor is told, too."""
    before = os.umask(0)
    try:
        folder = cache.cache_folder()
    finally:
        os.umask(before)
    (processor,) = (home / ".cache" / "distcompile").iterdir()
    assert folder == processor / "distcompile" / torch.__version__
    assert os.environ[CHOICE] == str(processor)
    assert {mode(p) for p in (processor, *processor.parents[:3])} == {0o700}
    assert cache.cache_folder() == folder


def test_code_of_another_processor_is_not_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes are shared by machines; what is compiled for one of them may not run on another."""
    first = cache.cache_folder()
    monkeypatch.delenv(CHOICE)
    assert cache.cache_folder() == first
    monkeypatch.delenv(CHOICE)
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self: re.sub("(?m)^(flags|Features).*", "flags: none", read_text(self))
    )
    cache._processor.cache_clear()
    assert cache.cache_folder() != first
    cache._processor.cache_clear()


@pytest.mark.parametrize("chosen", ["", "relative/caches"])
def test_where_caches_are_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """XDG_CACHE_HOME, unless it is relative, which is no choice."""
    monkeypatch.setenv("XDG_CACHE_HOME", chosen or str(tmp_path / "caches"))
    base = home / ".cache" if chosen else tmp_path / "caches"
    assert cache.cache_folder().is_relative_to(base / "distcompile")


def test_the_choice_of_a_user(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is taken, as long as it is one: what Inductor chose itself is not."""
    monkeypatch.setenv(CHOICE, str(tmp_path / "chosen"))
    assert cache.cache_folder() == tmp_path / "chosen" / "distcompile" / torch.__version__
    assert mode(tmp_path / "chosen") == 0o700
    assert not home.exists()
    monkeypatch.setenv(CHOICE, default_cache_dir())
    assert cache.cache_folder().is_relative_to(home)


@pytest.mark.parametrize("writable", [0o777, 0o775, 0o702])
@pytest.mark.parametrize("by_user", [True, False])
def test_a_folder_that_others_may_write(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: int, by_user: bool
) -> None:
    """Is refused, with its name and what to do, whoever chose it, also through a link."""
    folder = tmp_path / "shared" if by_user else cache._own()
    folder.mkdir(parents=True)
    folder.chmod(writable)
    if by_user:
        (tmp_path / "link").symlink_to(folder)
        monkeypatch.setenv(CHOICE, str(tmp_path / "link"))
    with pytest.raises(
        CacheError, match=f"Others may write {folder}, .*: delete it, or set {CHOICE} to a folder of yours"
    ):
        cache.cache_folder()
    folder.chmod(0o755)
    assert cache.cache_folder().is_relative_to(os.environ[CHOICE])


def test_a_folder_of_somebody_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.cache_folder()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(CacheError, match=rf"{home}/\S+ is user {owner}'s, and code is run from it: set {CHOICE} to"):
        cache.cache_folder()


def test_a_folder_in_one_that_others_may_write(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could put another in its place, unless only owners may."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv(CHOICE, str(tmp_path / "open" / "mine"))
    with pytest.raises(CacheError, match=f"Others may exchange what is in {tmp_path / 'open'}"):
        cache.cache_folder()
    (tmp_path / "open").chmod(0o1777)
    assert cache.cache_folder().is_relative_to(tmp_path / "open" / "mine")


def test_a_folder_that_cannot_be_made(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CHOICE, str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match=f"cannot be kept in {tmp_path}/file/cache: .*; set {CHOICE}"):
        cache.cache_folder()


@pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")
def test_compiling_stops_before_code_is_loaded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv(CHOICE, str(tmp_path / "shared"))
    with pytest.raises(CacheError, match="Others may write"):
        distcompile.compile(toys.Pair().eval(), toys.random_graph(14, 1), lowering="inductor", validate=False)
    assert list((tmp_path / "shared").iterdir()) == []


SCRIPT = """
    import json, sys, toys, distcompile
    from distcompile.passes.lower.inductor import generate

    generated = []
    stock = generate._generate
    generate._generate = lambda *args: (generated.append(1), stock(*args))[1]
    model = distcompile.compile(toys.Pair().eval(), toys.random_graph(14, 1), lowering="inductor", validate=False)
    energy = float(model(toys.random_graph(20, 2))["energy"])
    print(json.dumps([len(generated), energy]))
"""


@pytest.mark.skipif(lower.compiler() is None, reason="no C++ compiler")
def test_code_is_found_by_another_process(tmp_path: Path) -> None:
    """Which generates nothing; and nothing is left in the system's folder for what is temporary."""
    (tmp_path / "temporary").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != CHOICE}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "caches"), "TMPDIR": str(tmp_path / "temporary")}
    path = [str(Path(toys.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    answers = []
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append(json.loads(done.stdout.splitlines()[-1]))
        code = list((tmp_path / "caches" / "distcompile").rglob("*.so"))
    assert code
    (_, energy), again = answers
    assert again == [0, energy]
    assert [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()] == []
