"""What the documentation shows is run: every Python block of the README, in order, and the names it mentions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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


def test_commands_exist() -> None:
    """The make targets and subcommands that the README names are there."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    usage = subprocess.run(
        [sys.executable, "-m", "distcompile.cli", "--help"], capture_output=True, text=True, timeout=60
    )
    for command in re.findall(r"^distcompile (\S+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert command in usage.stdout


def test_links_lead_somewhere() -> None:
    """Relative links of the README and of the pages behind it."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
