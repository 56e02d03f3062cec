"""The stages and their passes in the order in which they run, and the one way to run them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..ir.writer import making
from . import spec
from .halos.bundle_all_reduces import bundle_all_reduces
from .halos.insert_all_reduces import insert_all_reduces
from .halos.insert_halos import insert_halos
from .halos.merge_sums import merge_sums
from .halos.narrow_halos import narrow_halos
from .halos.share_exchanges import share_exchanges
from .halos.thin_messages import thin_messages
from .lower.lower import Lowering, lower
from .normalize.normalize import normalize
from .schedule.bucket_messages import bucket_messages
from .schedule.overlap import overlap
from .schedule.share_gradients import share_gradients
from .schedule.tile import HOLD, tile
from .simplify.clean import clean
from .simplify.join_parts import join_parts
from .simplify.linear_through_gather import linear_through_gather
from .simplify.reassociate import reassociate
from .simplify.sparse_constants import sparse_constants
from .simplify.tabulate import tabulate
from .spaces.choose_owners import choose_owners
from .spaces.hoist import hoist
from .spaces.infer_spaces import infer_spaces
from .spaces.once_per_kind import once_per_kind
from .spaces.place import place

Pass = Callable[[Any], Any]
"""A function from one record of `ir.program` to the same, or to the next."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Passes with one purpose."""

    name: str
    passes: tuple[Pass, ...]
    ensures: Callable[[Any], None]
    """Raises AssertionError, which names the node, if a property does not hold after the stage."""


def simplifying(radial_error: float | None = None, leaves: Sequence[Tensor] = ()) -> Stage:
    """The stage that finds cheaper forms of the same values; arguments as of `tabulate`."""
    tables = functools.partial(tabulate, error=radial_error, leaves=leaves)
    passes = (clean, join_parts, linear_through_gather, sparse_constants, reassociate, tables)
    return Stage("simplify", passes, spec.functional)


def scheduling(hold: float = HOLD, in_step: bool = False) -> Stage:
    """The stage that decides the order of work; arguments as of `tile`. One rank waits for no messages."""
    tiling = functools.partial(tile, hold=hold, in_step=in_step)
    passes = (tiling, *(() if in_step else (overlap, bucket_messages)), share_gradients)
    return Stage("schedule", passes, spec.scheduled)


def lowering(how: Lowering = "eager", notify: Callable[[int, int], None] | None = None) -> Stage:
    """The stage that makes bodies of regions ready to run; arguments as of `lower`."""
    return Stage("lower", (functools.partial(lower, how=how, notify=notify),), spec.runnable)


def name_of(compiler_pass: Pass) -> str:
    """The name of a pass, with or without arguments that were given to it."""
    function = compiler_pass.func if isinstance(compiler_pass, functools.partial) else compiler_pass
    return function.__name__


STAGES = (
    Stage("normalize", (normalize,), spec.functional),
    simplifying(),
    Stage("spaces", (hoist, infer_spaces, choose_owners, place, once_per_kind), spec.placed),
    Stage(
        "halos",
        (
            merge_sums,
            insert_halos,
            insert_all_reduces,
            bundle_all_reduces,
            share_exchanges,
            narrow_halos,
            thin_messages,
        ),
        spec.distributed,
    ),
    scheduling(),
    lowering(),
)

NAMES = tuple(name_of(p) for stage in STAGES for p in stage.passes)
"""The names of all passes, in order."""


def run(
    program: Any,
    stages: Iterable[Stage] = STAGES,
    *,
    without: Collection[str] = (),
    after: Callable[[str, Any], None] | None = None,
    check: bool = False,
) -> Any:
    """The program after some stages.

    Args:
        program: the record that the first stage takes.
        stages: in order.
        without: names of passes to leave out: those that a program is right without.
        after: called with the name of each pass, and the program that it returned.
        check: hold the program to what each stage ensures.

    Raises:
        ValueError: there is no pass of a name in `without`.
        AssertionError: with `check`, something does not hold after a stage.
    """
    if unknown := set(without) - set(NAMES):
        raise ValueError(f"no such pass: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for stage in stages:
        for compiler_pass in stage.passes:
            name = name_of(compiler_pass)
            if name in without:
                continue
            with making(name):
                program = compiler_pass(program)
            if after is not None:
                after(name, program)
        if check:
            stage.ensures(program)
    return program
