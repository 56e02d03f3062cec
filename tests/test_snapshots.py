"""What the compiler makes of a model, as text that a person has reviewed: `show_program` and `explain`.

After a deliberate change of a pass, run pytest with ``--snapshot-update`` and review the difference like code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import MODELS, compiled, model
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

import distcompile
from distcompile import LocalWorld
from distcompile.passes import NAMES, STAGES, name_of
from distcompile.show.printer import show_program
from distcompile.torch_versions import TORCH

HELD = ("gnn", "mace", "chgnet")
"""Models whose texts are held."""


class TextFile(SingleFileSnapshotExtension):
    """One text file for each snapshot."""

    file_extension = "txt"
    _write_mode = WriteMode.TEXT


@pytest.fixture
def text_file(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """Snapshots in files of their own."""
    return snapshot.use_extension(TextFile)


@pytest.mark.parametrize("name", HELD)
def test_program(name: str, text_file: SnapshotAssertion) -> None:
    """Every operator with its placement, every collective."""
    text = show_program(compiled(name)[0].program)
    # Since then, the gradient of a clamp is zero at its bound, too.
    assert (text.replace("gt.Scalar(", "ge.Scalar(") if TORCH >= (2, 14) else text) == text_file


@pytest.mark.parametrize("name", HELD)
def test_explanation(name: str, text_file: SnapshotAssertion) -> None:
    """Spaces, pointers and collectives as users are told of them."""
    assert compiled(name)[0].explain() == text_file


@pytest.mark.parametrize("name", HELD)
def test_texts_hold_nothing_of_this_machine_or_this_run(name: str) -> None:
    """No addresses, no absolute paths, and no sizes of the example."""
    dmodel, example, _ = compiled(name)
    for text in (show_program(dmodel.program), dmodel.explain()):
        assert not re.search(r"0x[0-9a-f]{6,}", text)
        assert not re.search(r"(?<![\w*])/\w+/", text), "an absolute path"
        assert "site-packages" not in text
    args = example if isinstance(example, tuple) else (example,)
    sizes = dmodel.executor_for(*args).prepare(dmodel.flatten(args)[0]).sizes
    large = [n for n in sizes.values() if n > 200]
    assert large
    for n in large:
        assert not re.search(rf"(?<!%)\b{n}\b", show_program(dmodel.program)), f"{n} rows of the example"


OTHER_PROCESS = """
import sys
import distcompile
import programs
from distcompile.show.printer import show_program
for name in sys.argv[1:]:
    given = programs.MODELS[name]
    world = distcompile.LocalWorld(3)
    other = distcompile.compile(given.make(), given.other(), model_kwargs=given.kwargs, world=world, validate=False)
    print("-- text of", name)
    print(show_program(other.program), end="")
    print(other.explain(), end="")
    print("-- end of", name)
"""


def test_texts_are_the_same_in_another_process_and_for_an_example_of_another_size() -> None:
    """Compiled anew with other hash seeds, on 5 atoms or so, on three ranks: letter by letter the same."""
    for name in HELD:
        model(name)  # skips where a package is missing
    paths = [str(Path(distcompile.__file__).parent.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", OTHER_PROCESS, *HELD],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for name in HELD:
        theirs = run.stdout.partition(f"-- text of {name}\n")[2].partition(f"-- end of {name}\n")[0]
        ours = show_program(compiled(name)[0].program) + compiled(name)[0].explain()
        assert theirs.splitlines() == ours.splitlines(), name


def test_texts_tell_programs_apart() -> None:
    """Another model is another text, and so is another number of layers."""
    texts = {name: show_program(compiled(name)[0].program) for name in MODELS if name not in ("mace", "chgnet")}
    deep = type(MODELS["gnn"].make())(layers=3)
    texts["deep"] = show_program(
        distcompile.compile(deep, MODELS["gnn"].example(), world=LocalWorld(1), validate=False).program
    )
    assert len(set(texts.values())) == len(texts) == 4


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_leaves_a_program_that_holds_its_invariants(name: str) -> None:
    """Each stage ensures what it says of the program that it leaves."""
    dmodel, _, after = compiled(name)
    assert list(after) == list(NAMES[:-1])  # those of the stage `lower` run when the program is fitted to the memory
    for stage in STAGES[:-1]:
        stage.ensures(after[name_of(stage.passes[-1])])
    STAGES[-1].ensures(dmodel.program)
