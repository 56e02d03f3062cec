"""Programs of tiny models after some pass, printed as `show_program` does.

A model is a function of tensors: features of atoms, and pointers of edges to atoms. So a program is a few lines, which
stand in the test.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from rewriting import EXAMPLES, evaluated, names_in
from torch import Tensor

from distcompile.capture.trace import capture
from distcompile.ir import Normal
from distcompile.ir.text import Names, short
from distcompile.passes import STAGES, run
from distcompile.show.printer import said_by_name, show_program, show_type

Model = Callable[..., Any]


@functools.cache
def programs(model: Model) -> dict[str, Any]:
    """The program of a function of `EXAMPLES` after each pass, by name; each stage is held to what it ensures."""
    after: dict[str, Any] = {}
    given = captured(model, tuple(inspect.signature(model).parameters))
    run(given, STAGES[:-1], after=after.__setitem__, check=True)
    return after


def captured(model: Model, names: tuple[str, ...]) -> Normal:
    """The capture of a function of some examples."""
    found = capture(model, None, tuple(EXAMPLES[name] for name in names), names)
    return Normal(found, found.graph_module)


def operators(program: Any) -> str:
    """The operators of a program and what it returns, without its inputs."""
    lines = show_program(program).partition("program\n")[2].splitlines()
    return "\n".join(line for line in lines if " = " in line or "return" in line)


def placed(expression: str) -> str:
    """The placement of an expression of `EXAMPLES`, beside messages along edges, by which spaces are found."""
    program = _placed(expression, names_in(expression))
    (output,) = [node for node in program.graph.graph.nodes if node.op == "output"]
    return show_type(program, output.args[0][0])


@functools.cache
def _placed(expression: str, names: tuple[str, ...]) -> Any:
    names = (*names, *(name for name in ("x", "p", "q") if name not in names))

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(names, tensors, strict=True))
        x, p, q = (given[name] for name in ("x", "p", "q"))
        return evaluated(expression, given), torch.zeros_like(x).index_add(0, q, x[p])

    return run(captured(call, names), STAGES[:3], check=True)


def header(program: Any) -> str:
    """The spaces and pointers of a program."""
    return show_program(program).partition("program\n")[0]


def tiled(program: Any) -> str:
    """The tiled graph of a program: calls of regions, and messages."""
    names = Names()
    lines = []
    for node in program.tiled.graph.nodes:
        if node.op == "placeholder":
            names.given(node, node.name)
        elif node.op == "output":
            lines.append(f"return {names.show(node.args[0])}")
        else:
            names.count(node)
            given = [names.show(a) for a in node.args] + [f"{k}={names.show(v)}" for k, v in said_by_name(node)]
            name = node.target if node.op == "call_module" else short(node)
            lines.append(f"{names[node]} = {name}({', '.join(given)})")
    return "\n".join(lines)


def holds(found: str, expected: str) -> None:
    """Hold a text to having some lines, which stand indented in a test, one after the other."""
    mine, theirs = ([line.strip() for line in text.strip().splitlines()] for text in (found, expected))
    places = range(len(mine) - len(theirs) + 1)
    assert any(mine[i : i + len(theirs)] == theirs for i in places), "\n" + textwrap.indent("\n".join(mine), "    ")
