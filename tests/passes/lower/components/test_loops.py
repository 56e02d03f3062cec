"""Which statements run together, over what, and what stands in memory: the text of small bodies."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
from torch import fx

from distcompile.passes.lower import lower
from distcompile.passes.lower.components.loops import plan
from distcompile.passes.lower.components.target import PROCESSOR

from .bodies import Constant, Inputs, Rows, Run, Weight, as_program, by_torch, compiled, traced


@dataclasses.dataclass(frozen=True)
class Loop:
    """One loop of a program."""

    turns: int
    lines: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    def containing(self, *parts: str) -> list[str]:
        """The statements that contain one of some texts."""
        return [line for line in self.lines if any(p in line for p in parts)]

    @property
    def stores(self) -> int:
        """The statements that write to memory."""
        return sum(bool(re.match(r"[fdib]\[", line)) for line in self.lines)


def inputs() -> Inputs:
    """Tensors for all bodies here."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return {
        "x": Rows(normal(11, 40, 3)),
        "flat": Rows(normal(11, 384)),
        "m": Rows(normal(11, 128, 3)),
        "h": Rows(normal(11, 128)),
        "g": Rows(normal(11, 128)),
        "v": Rows(normal(11, 3)),
        "r": Rows(normal(11, 1)),
        "three": Rows(normal(11, 3, 128)),
        "w": Weight(normal(40, 3)),
        "square": Weight(normal(128, 128)),
        "unit": Constant(torch.eye(128, dtype=torch.float64)),
    }


@functools.cache
def body(run: Run) -> fx.GraphModule:
    """The body that computes what a function does."""
    return traced(run, inputs())


@functools.cache
def text(run: Run) -> str:
    """The program of a body, without the prelude."""
    source = as_program(body(run), inputs())[1].source
    return source.split(PROCESSOR.prelude)[1]


def loops(run: Run) -> list[Loop]:
    """The loops of a body, in order."""
    found = []
    for body in re.findall(r"LOOP loop\d+\(PARTS\) \{\n(.*?)\n\}\n", text(run) + "\n", re.DOTALL):
        before, head, inner, after = re.fullmatch(
            r"(.*?)    (TURNS\(c, \d+\)|ONCE) \{\n(.*?)\n    \}\n?(.*)", body, re.DOTALL
        ).groups()
        turns = 1 if head == "ONCE" else int(re.search(r"\d+", head).group())
        found.append(Loop(turns, *(tuple(s.strip() for s in p.splitlines()) for p in (inner, before, after))))
    return found


def calls(run: Run) -> list[str]:
    """What is called for each few rows, in order: read, loop, product, write."""
    inside = text(run).split("const Step here")[1]
    return [
        re.match(r"\s*(?:APART )?([a-z]+)", line).group(1)
        for line in inside.splitlines()
        if re.match(r"\s+(APART )?[a-z]", line)
    ]


def check(run: Run) -> None:
    """The program computes what torch does."""
    if lower.compiler() is not None:
        for found, expected in zip(compiled(body(run), inputs())(inputs()), by_torch(run, inputs()), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def test_the_widest_dimension_is_the_loop() -> None:
    """Of 40 x 3 entries, 40 are turns; the three statements of a turn are written out."""

    def run(t: Any) -> list[torch.Tensor]:
        return [t.x * t.w + t.v[:, None]]

    (loop,) = loops(run)
    assert loop.turns == 40
    assert len(loop.containing(" * v")) == len(loop.containing(" + v")) == loop.stores == 3
    assert calls(run) == ["read", "read", "loop", "write"]
    check(run)


def test_the_loop_is_of_the_usual_length() -> None:
    """Of two wide dimensions the loop is over the one that other values have."""

    def run(t: Any) -> list[torch.Tensor]:
        outer = t.x[:, :, None, 0] * t.h[:, None, :16]  # [40, 16]
        return [outer.exp(), (t.x[:, :, 0] * 2).exp(), (t.x[:, :, 1] * 3).exp()]

    found = loops(run)
    assert [loop.turns for loop in found] == [40]
    assert len(found[0].containing("exp(")) == 16 + 2
    check(run)


def test_few_numbers_are_no_loop() -> None:
    """Three numbers are three statements."""

    def run(t: Any) -> list[torch.Tensor]:
        return [t.v * t.v + 1]

    (loop,) = loops(run)
    assert loop.turns == 1
    assert len(loop.containing(" * v")) == loop.stores == 3
    check(run)


def test_a_flat_value_shares_the_loop_of_its_user() -> None:
    """A value of 384 numbers is computed in the 128 turns of what reads it as 128 x 3, and is never in memory."""

    def run(t: Any) -> list[torch.Tensor]:
        return [(t.flat * 2.5).exp().reshape(-1, 128, 3) * t.m]

    (loop,) = loops(run)
    assert loop.turns == 128
    assert len(loop.containing("exp(")) == 3
    assert loop.stores == 3, "of the result"
    check(run)


def test_a_transposed_value_shares_the_loop_of_its_user() -> None:
    """The turn of an element follows it through a permutation."""

    def run(t: Any) -> list[torch.Tensor]:
        return [t.three.sin().transpose(1, 2) * t.m]

    (loop,) = loops(run)
    assert loop.turns == 128
    assert len(loop.containing("sin(")) == loop.stores == 3
    check(run)


def test_a_long_sum_accumulates_where_its_terms_are_computed() -> None:
    """Three sums of 40 terms; no term stands in memory."""

    def run(t: Any) -> list[torch.Tensor]:
        return [(t.x * t.v[:, None]).exp().sum(1)]

    (loop,) = loops(run)
    assert loop.turns == 40
    assert len(loop.before) == len(loop.after) == 3
    assert len(loop.containing(" += ")) == len(loop.containing("exp(")) == 3
    assert loop.stores == 0
    check(run)


def test_a_short_sum_is_written_out() -> None:
    """Twelve terms are one statement."""

    def run(t: Any) -> list[torch.Tensor]:
        return [t.h[:, :12].sum(1)]

    (loop,) = loops(run)
    assert loop.turns == 1
    assert not loop.before
    assert max(line.count(" + ") for line in loop.lines) == 11
    check(run)


def test_a_product_is_a_phase_of_its_own() -> None:
    """What it reads is in memory before it; what reads it comes after."""

    def run(t: Any) -> list[torch.Tensor]:
        return [(t.h.exp() @ t.square).tanh()]

    assert calls(run) == ["read", "loop", "product", "loop", "write"]
    assert [loop.turns for loop in loops(run)] == [128, 128]
    check(run)


def test_what_is_cheap_is_computed_again_in_a_later_phase() -> None:
    """A product and a sum: the second loop computes them from the rows, and reads no result of the first."""

    def run(t: Any) -> list[torch.Tensor]:
        a = t.h * t.r + 1
        return [(a @ t.square) * a]

    first, second = loops(run)
    assert len(first.containing("+ all<D>(1.0)")) == len(second.containing("+ all<D>(1.0)")) == 1
    assert len(second.containing(" = d[")) == 3, "h, r and the product"
    check(run)


def test_what_is_dear_is_stored_for_a_later_phase() -> None:
    """An exponential is computed once."""

    def run(t: Any) -> list[torch.Tensor]:
        a = (t.h * t.r).exp()
        return [(a @ t.square) * a]

    first, second = loops(run)
    assert len(first.containing("exp(")) == 1
    assert not second.containing("exp(")
    assert len(second.containing(" = d[")) == 2, "the exponential and the product"
    check(run)


def test_what_is_cheap_but_made_of_what_is_dear_reads_that() -> None:
    """The multiplication is done again, of the exponential that is in memory for it alone."""

    def run(t: Any) -> list[torch.Tensor]:
        e = t.h.exp()
        return [((e * t.g) @ t.square) * (e * t.g)]

    assert sum(len(loop.containing("exp(")) for loop in loops(run)) == 1
    check(run)


def test_nothing_is_computed_that_no_result_needs() -> None:
    """Of 128 exponentials only two are read; terms and factors that are zero or one vanish."""

    def run(t: Any) -> list[torch.Tensor]:
        return [t.h.exp()[:, 5:7] * 1.0 + 0.0, t.g @ t.unit]

    (loop,) = loops(run)
    assert len(loop.containing("exp(")) == 2
    assert not loop.containing(" * ", " + ")
    assert calls(run).count("product") == 0, "a product with the unit matrix is its operand"
    check(run)


def test_equal_statements_are_written_once() -> None:
    """The same product, twice in a body."""

    def run(t: Any) -> list[torch.Tensor]:
        return [(t.h * t.g).exp(), (t.h * t.g).exp() + 1]

    (loop,) = loops(run)
    assert len(loop.containing("exp(")) == len(loop.containing(" * v")) == 1
    check(run)


def test_memory_is_given_back_after_the_last_phase_that_reads_it() -> None:
    """A chain of products takes as much memory as two of them."""

    def chain(n: int) -> Run:
        def run(t: Any) -> list[torch.Tensor]:
            x = t.h
            for _ in range(n):
                x = (x @ t.square).tanh()
            return [x]

        return run

    short, long = (as_program(chain(n), inputs())[1].scratch for n in (3, 9))
    assert long == short
    check(chain(3))


def test_every_operand_comes_before_its_use() -> None:
    """Phases in the plan of a body of several products and long sums, element by element."""

    def run(t: Any) -> list[torch.Tensor]:
        a = (t.h @ t.square).sigmoid()
        s = (a * t.g).sum(-1, keepdim=True)
        b = (a * s) @ t.square
        return [b * t.h + a, (b.exp() * t.g).sum(-1)]

    followed, _ = as_program(body(run), inputs())
    table = followed.table
    outputs = [v.elements.numpy().reshape(-1) for v in followed.outputs]
    found = plan(table, table.definitions, outputs)
    for definition in table.definitions:
        own = int(found.phase_of[definition.elements[0]])
        assert all((found.phase_of[operand] <= own).all() for operand in definition.operands)
    assert found.stored[outputs[0]].all()
    assert len(found.phases) >= 4, "two products, each after what it reads"
    check(run)


@pytest.mark.parametrize("length", [15, 16, 23, 25])
def test_sums_of_any_length_are_right(length: int) -> None:
    """Around the lengths at which loops and long sums begin."""

    def run(t: Any) -> list[torch.Tensor]:
        part = t.h[:, :length]
        return [part.sum(-1), (part * t.g[:, :length]).sum(-1), part.cos().sum(-1), part * t.r]

    assert all(loop.turns in (1, length) for loop in loops(run))
    check(run)
