"""The pictures at the top of passes: what stands on the left becomes what stands on the right, and is as large.

Of passes that rewrite expressions, each line ``before => after`` is run; its names are those of `rewriting`. A pass
makes of the left side what it makes of the right side, but for what `MORE` says. Pictures in `SCHEMATIC` are not run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rewriting import Pass, names_in, program, same_results, text

import distcompile
from distcompile.passes.normalize.normalize import normalize
from distcompile.passes.simplify.clean import clean
from distcompile.passes.simplify.join_parts import join_parts
from distcompile.passes.simplify.linear_through_gather import linear_through_gather

PASSES = Path(distcompile.__file__).parent / "passes"

EXECUTED: dict[str, Pass] = {
    "normalize/normalize": normalize,
    "normalize/padded_rows": normalize,
    "normalize/reductions": normalize,
    "normalize/rows_by_number": normalize,
    "normalize/rows_within_rows": normalize,
    "simplify/clean": clean,
    "simplify/join_parts": join_parts,
    "simplify/linear_through_gather": linear_through_gather,
}
"""Files whose pictures are run, and the pass that they show."""

MORE = {
    "x[arange(n), k] = 0.0": "columns may be counted from the end",
    "x[c] = u": "rows are held to be distinct",
    "scatter_add(x, 0, p[:, None].expand(v.shape), v)": "p is made a row again",
    "gather(x, 0, p[:, None].expand(v.shape))": "p is made a row again",
    "conj(view_as_complex(z)) * s": "dimensions are counted from the end",
    "cat([s, e])[r]": "-1 is the row more",
    "index_add(zeros(n + 1), 0, r, w)[:n]": "-1 is the row more",
    "index_add(zeros(n + 1), 0, r, w)[n:]": "-1 is the row more",
    "var(x, [0])": "squares are products",
    "logsumexp(x, 0)": "rows may all be infinite",
    "softmax(x, 0)": "rows may all be infinite",
    "amax(x, 0)": "rows may be infinite",
    "index_add(zeros(n * 16), 0, p * 16 + q, w)": "p and q are found by division",
    "b[p * 16 + q]": "p and q are found by division",
    "h.reshape(n * l)[j]": "l is a tensor",
    "a.reshape(n * 16)[j]": "the division has another name",
}
"""What passes write beyond the right side, which is a picture of the numbers: exact forms are in tests of the pass."""

_PROGRAM = "a stretch of a distributed program: tests of the pass hold a whole one"
_COST = "a choice by cost: tests of the pass hold the numbers"
_TEXT = "what becomes of code: tests of the file run it"
_ELEMENTS = "numbers of one row: tests of component code run bodies"
SCHEMATIC = {
    "simplify/reassociate": "operators of gradients: tests of the pass run forward and backward",
    "simplify/sparse_constants": "a buffer of a model: tests of the pass have one",
    "simplify/tabulate": "a choice by numbers that weights decide: tests of the pass have models",
    "spaces/choose_owners": _PROGRAM,
    "spaces/flat_lists": _PROGRAM,
    "spaces/infer_spaces": _PROGRAM,
    "spaces/joined_spaces": _PROGRAM,
    "spaces/largest_row": _PROGRAM,
    "spaces/once_per_kind": _PROGRAM,
    "spaces/other_rows": _PROGRAM,
    "spaces/pointers": _PROGRAM,
    "spaces/whole": _PROGRAM,
    "halos/bundle_all_reduces": _PROGRAM,
    "halos/cut_messages": _COST,
    "halos/insert_all_reduces": _PROGRAM,
    "halos/insert_halos": _PROGRAM,
    "halos/merge_sums": _PROGRAM,
    "halos/narrow_halos": _PROGRAM,
    "halos/share_exchanges": _PROGRAM,
    "halos/thin_messages": _PROGRAM,
    "schedule/bucket_messages": _PROGRAM,
    "schedule/overlap": _PROGRAM,
    "schedule/share_gradients": _PROGRAM,
    "schedule/tile": _PROGRAM,
    "lower/components/follow": _ELEMENTS,
    "lower/components/loops": _ELEMENTS,
    "lower/components/outer": _ELEMENTS,
    "lower/components/recompute": _ELEMENTS,
    "lower/inductor/body": _TEXT,
    "lower/inductor/cpp_library": _TEXT,
    "lower/inductor/generate": _TEXT,
    "lower/lower": _TEXT,
}
"""Files whose pictures are not run, and why."""


def picture(name: str) -> Iterator[tuple[str, str]]:
    """Both sides of each line of a file's picture; what stands four spaces to their right is a remark."""
    words = ast.get_docstring(ast.parse((PASSES / f"{name}.py").read_text())) or ""
    for line in words.splitlines():
        before, arrow, after = line.partition("=>")
        if arrow:
            yield before.strip(), re.split(r"\s{3,}", after.strip())[0]


PICTURES = [(name, *sides) for name in EXECUTED for sides in picture(name)]


@pytest.mark.parametrize(("name", "before", "after"), PICTURES)
def test_a_picture_is_what_the_pass_does(name: str, before: str, after: str) -> None:
    """The left side changes, into what has the same value and, but for `MORE`, is the same program."""
    names, compiler_pass = names_in(before, after), EXECUTED[name]
    left, right = program(before, names), program(after, names)
    found, aim = compiler_pass(left), compiler_pass(right)
    assert text(found) != text(left), "the pass leaves it as it is"
    same_results(found, left)
    same_results(found, right)
    assert (text(clean(found)) == text(clean(aim))) is (before not in MORE)


def test_no_picture_is_forgotten() -> None:
    """Each is run, or listed as one that is not."""
    names = {str(path.relative_to(PASSES).with_suffix("")) for path in PASSES.rglob("*/*.py")}
    assert {name for name in names if any(picture(name))} <= EXECUTED.keys() | SCHEMATIC.keys()
    assert EXECUTED.keys() | SCHEMATIC.keys() <= names
    assert not EXECUTED.keys() & SCHEMATIC.keys()
    assert MORE.keys() <= {before for _, before, _ in PICTURES}
