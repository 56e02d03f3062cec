"""What a pass makes of a few operators, as text: small graphs in, rewritten text out.

    rewrites(normalize, "x[mask]", "index_select(x, 0, select(nonzero(mask), 1, 0))")

Both sides are Python expressions of `EXAMPLES` and of ATen operators, captured as models are: with symbolic sizes. The
text is one nested expression, so it tells of what a result is computed, not in which order nor in how many nodes.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from distcompile.capture.trace import capture
from distcompile.ir import Normal
from distcompile.ir.text import Names, short
from distcompile.runtime.operators.checks import distinct_rows
from distcompile.runtime.operators.halo import stop_gradient

aten = torch.ops.aten

Pass = Callable[[Normal], Normal]

ATOMS, EDGES = 7, 12


def _examples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def features(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def numbers(below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=generator)

    return {
        "x": features(ATOMS, 3),
        "y": features(ATOMS, 3),
        "s": features(ATOMS),
        "k": numbers(3, ATOMS),
        "mask": torch.arange(ATOMS) % 3 == 0,
        "z": features(ATOMS, 2),
        "a": features(ATOMS, 16),
        "h": features(ATOMS, 4),
        "p": numbers(ATOMS, EDGES),
        "q": numbers(ATOMS, EDGES),
        "r": numbers(ATOMS + 1, EDGES),
        "j": numbers(4 * ATOMS, EDGES),
        "v": features(EDGES, 3),
        "w": features(EDGES),
        "c": torch.tensor([4, 0, 5]),
        "u": features(3, 3),
        "d": features(),
        "e": features(1),
        "g": features(3),
        "f": numbers(EDGES, 9),
        "f2": numbers(EDGES, 9),
    }


EXAMPLES = _examples()
"""Of atoms: features x and y, a number s, a kind k, a mask, pairs of numbers z, 16 features a, neighbours h. Of edges:
pointers p and q to atoms, pointers r to atoms or to none, places j in h, features v, a number w. Three atoms c with
features u. A number d, a row of one number e, a row of features g. Of angles: pointers f and f2 to edges."""

DERIVED = {
    "l": "h.shape[1]",
    "b": "a.reshape(a.shape[0] * 16)",
    "i": "2",
    "t": "full([5, 3], 2.0, dtype=float)",
    "o": "cat([s, s[:1]])",
    "written": "index_fill(full([x.shape[0]], False), 0, c, True)[:, None]",
    "count": "scatter_add(zeros(s.shape[0]), 0, p, full([w.shape[0]], 1.0)) + 1",
    "N": "w.shape[0]",
    "m": "stop_gradient(amax(x, 0))",
}
"""Names for what is made of them."""


def full(sizes: list[Any], fill: Any, dtype: torch.dtype | None = None) -> Tensor:
    # By its overload: torch 2.12 would ask for sizes as plain numbers to find it.
    return aten.full.default(sizes, fill, dtype=dtype or {float: torch.float64, bool: torch.bool}[type(fill)])


def zeros(*sizes: Any) -> Tensor:
    return full(list(sizes), 0.0)


def arange(n: Any, dtype: torch.dtype = torch.int64) -> Tensor:
    return aten.arange(n, dtype=dtype)


def nonzero(mask: Tensor) -> Tensor:
    """Numbers of the rows where a mask is true."""
    return aten.select(aten.nonzero(mask), 1, 0)


def where(condition: Tensor, one: Any, other: Any) -> Tensor:
    """As of torch; a number is written as passes write it."""
    dtype = next(v.dtype for v in (one, other) if isinstance(v, Tensor))
    one, other = (v if isinstance(v, Tensor) else aten.full([], v, dtype=dtype) for v in (one, other))
    return aten.where(condition, one, other)


def gradient(of: Callable[[Tensor], Tensor], at: Tensor, given: Tensor) -> Tensor:
    """The gradient of what is made of a tensor, by the gradient of what was made."""
    at = at.detach().requires_grad_()
    return torch.autograd.grad(of(at), at, given)[0]


WORDS: dict[str, Any] = {
    "torch": torch,
    "float": torch.float64,
    "int": torch.int64,
    "stop_gradient": stop_gradient,
    "distinct_rows": distinct_rows,
    **{f.__name__: f for f in (full, zeros, arange, nonzero, where, gradient)},
}
"""What an expression may use beside examples and operators of ATen."""


class _Vocabulary(dict[str, Any]):
    """Names of an expression: examples, words, what is derived, then operators of ATen; n is the number of atoms."""

    def __missing__(self, name: str) -> Any:
        if name == "n":
            return next(self[atoms].shape[0] for atoms in ATOMS_OF if atoms in self)
        return eval(DERIVED[name], self) if name in DERIVED else getattr(aten, name)


ATOMS_OF = ("x", "s", "a", "h")
"""Examples with a row for each atom, of which the first that is given says how many there are."""


def evaluated(expression: str, examples: Mapping[str, Any]) -> Any:
    """The value of a Python expression, or of a tensor after something was assigned to its elements."""
    (line,) = ast.parse(expression).body
    names = _Vocabulary({**WORDS, **examples})
    if isinstance(line, ast.Expr):
        return eval(expression, names)
    assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Subscript)
    changed = ast.unparse(line.targets[0].value)
    names[changed] = names[changed].clone()
    exec(expression, names)
    return names[changed]


def names_in(*expressions: str) -> tuple[str, ...]:
    """The examples that expressions are made of, in order."""
    found: set[str] = set()
    waiting = list(expressions)
    while waiting:
        new = {node.id for node in ast.walk(ast.parse(waiting.pop())) if isinstance(node, ast.Name)} - found
        waiting += [DERIVED[name] for name in new & DERIVED.keys()]
        found |= new
    if "n" in found and not found & set(ATOMS_OF):
        found.add(ATOMS_OF[0])
    return tuple(name for name in EXAMPLES if name in found)


@functools.cache
def program(expression: str, names: tuple[str, ...]) -> Normal:
    """The capture of an expression, with some of `EXAMPLES` for inputs."""

    def call(*tensors: Tensor) -> Any:
        return evaluated(expression, dict(zip(names, tensors, strict=True)))

    captured = capture(call, None, tuple(EXAMPLES[name] for name in names), names)
    return Normal(captured, captured.graph_module)


def text(given: Normal) -> str:
    """The results of a program as expressions of its inputs."""
    (output,) = [node for node in given.graph.graph.nodes if node.op == "output"]
    return "; ".join(_Text(given).show(result) for result in output.args[0])


VIEWS = (aten.view.default, aten._unsafe_view.default)
"""What a capture makes of ``reshape``, which passes write."""


class _Text(Names):
    """Nodes as nested expressions, and sizes as expressions of the lengths of inputs."""

    def __init__(self, given: Normal) -> None:
        super().__init__()
        captured = self._captured = given.captured
        self._module = given.graph
        self._inputs: dict[str, str] = {}
        self._sizes: dict[sympy.Symbol, sympy.Symbol] = {}
        placeholders = [n for n in captured.graph_module.graph.nodes if n.op == "placeholder"]
        for node, leaf, shape in zip(placeholders, captured.leaves, captured.sizes, strict=True):
            self._inputs[node.name] = leaf.path
            for dim, size in enumerate(shape):
                self._sizes.setdefault(size, sympy.Symbol(f"{leaf.path}.shape[{dim}]"))

    def show(self, value: Any) -> str:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, fx.Node):
            return super().show(value)
        if isinstance(value.meta.get("val"), torch.SymInt):
            return self._size(value.meta["val"])
        if value.op == "placeholder":
            return self._inputs[value.name]
        if value.op == "get_attr":
            return self._constant(getattr(self._module, str(value.target)))
        given = [self.show(a) for a in _given(value)] + [f"{k}={self.show(v)}" for k, v in _said(value)]
        name = "reshape" if value.target in VIEWS else short(value)
        return f"{name}({', '.join(given)})"

    def _constant(self, value: Tensor) -> str:
        """A tensor of the model's: a number as passes write it."""
        filled = value.dim() == 0 and f"full([], {self.show(value.item())}, dtype={self.show(value.dtype)})"
        return filled or f"constant{list(value.shape)}"

    def _size(self, value: torch.SymInt) -> str:
        size = self._captured.size(value)
        for symbol in sorted(size.free_symbols - self._sizes.keys(), key=str):
            self._sizes[symbol] = sympy.Symbol(f"n{len(self._sizes)}")
        return str(size.xreplace(self._sizes))


def _given(node: fx.Node) -> list[Any]:
    """Arguments of an operator but for the last ones that are what they are by default."""
    given, schema = list(node.args), getattr(node.target, "_schema", None)
    while schema is not None and given and schema.arguments[len(given) - 1].has_default_value():
        if given[-1] != schema.arguments[len(given) - 1].default_value:
            break
        given.pop()
    return given


def _said(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Keyword arguments that say something about the computation."""
    silent = {"device", "pin_memory", "layout", "memory_format"}
    if node.target in (aten.arange.default, aten.arange.start, aten.arange.start_step) and _counts(node):
        silent.add("dtype")
    return ((k, v) for k, v in sorted(node.kwargs.items()) if k not in silent and v is not None)


def _counts(node: fx.Node) -> bool:
    return node.meta["val"].dtype == torch.int64


def results(given: Normal) -> list[Tensor]:
    """What a program computes of the examples."""
    return given.graph(*[leaf.tensor for leaf in given.captured.leaves])[: len(_results(given))]


def _results(given: Normal) -> list[Any]:
    (output,) = [node for node in given.graph.graph.nodes if node.op == "output"]
    return output.args[0][: len(output.args[0]) - len(given.captured.conditions)]


def rewrites(compiler_pass: Pass, before: str, after: str) -> None:
    """Hold a pass to making of one expression the other, which has the same value."""
    names = names_in(before, after)
    becomes(compiler_pass, before, text(program(after, names)), names)


def becomes(compiler_pass: Pass, before: str, after: str, names: tuple[str, ...] = ()) -> None:
    """The same where the other one is given as text: of what no capture would write."""
    given = program(before, names or names_in(before))
    found = compiler_pass(given)
    assert text(found) == after, f"{before} becomes\n{text(found)}, not\n{after}"
    same_results(found, given)


def keeps(compiler_pass: Pass, expression: str) -> None:
    """Hold a pass to leaving an expression as it is."""
    given = program(expression, names_in(expression))
    found = text(compiler_pass(given))
    assert found == text(given), f"{expression} becomes {found}"


def same_results(one: Normal, two: Normal) -> None:
    """Hold two programs to the same numbers."""
    for mine, theirs in zip(results(one), results(two), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
