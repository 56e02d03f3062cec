"""The statements of loops in C++: each written before the first that needs it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .elements import Definition, Elements, Pointwise, Sum, Table, Unsupported, Whole, positions
from .loops import Loop, Plan, Step
from .memory import Memory
from .values import Given, kind_of

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}

FORMS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "lt": "truth({} < {})",
    "le": "truth({} <= {})",
    "gt": "truth({} > {})",
    "ge": "truth({} >= {})",
    "eq": "truth({} == {})",
    "ne": "truth({} != {})",
    "and": "({} & {})",
    "or": "({} | {})",
    "not": "~{}",
}
"""Functions that C++ has operators for."""


class Texts:
    """C++ of what is the same for all rows, and of addresses."""

    def __init__(self, table: Table, given: Sequence[Given], definitions: Sequence[Definition]) -> None:
        self.table, self.given, self.definitions = table, given, definitions
        self.owner = positions(table, definitions)
        self.tables: dict[str, str] = {}
        """Declarations of constant tables, by their types and numbers."""

    def static(self, c_type: str, numbers: Sequence[int | float]) -> str:
        start, end = f"CONSTANT {c_type} ", f"[] = {{{', '.join(map(str, numbers))}}};"
        key = start + end
        if key not in self.tables:
            self.tables[key] = f"{start}table{len(self.tables)}{end}"
        return self.tables[key][len(start) :].split("[")[0]

    def whole(self, row: Elements) -> tuple[int, np.ndarray]:
        """The input that elements are of, and their addresses in it."""
        owner = self.owner[row.flat[0]]
        if not (self.owner[row] == owner).all():
            raise Unsupported("numbers of several inputs in one loop")
        definition = self.definitions[owner]
        assert isinstance(definition.what, Whole)
        lookup = np.searchsorted(definition.elements, row)
        return definition.what.input, definition.places[lookup]

    def same_for_all(self, row: Elements, kind: str) -> str:
        """A vector of what is the same for all rows, in each turn."""
        numbers = self.table.value(row)
        if not np.isnan(numbers).any():
            if (numbers == numbers[0]).all():
                return f"all<{kind}>({_literal(numbers[0], kind)})"
            c_type = {"F": "float", "D": "double", "I": "int64_t", "B": "int32_t"}[kind]
            return f"all<{kind}>({self.static(c_type, [_literal(n, kind) for n in numbers.tolist()])}[c])"  # type: ignore[misc]
        i, address = self.whole(row)
        dtype = self.given[i].dtype
        entry = f"((const {C_TYPES[dtype]}*)given[{i}])[{self.affine(address)}]"
        return f"all<{kind}>({'-(int)' if dtype == torch.bool else ''}{entry})"

    def affine(self, address: np.ndarray) -> str:
        """An address as a function of the turn."""
        steps = np.diff(address)
        if not len(steps) or not steps.any():
            return str(address[0])
        if (steps == steps[0]).all():
            return f"{address[0]} + {steps[0]} * c"
        return f"{self.static('int', address.tolist())}[c]"


Result = tuple[int, int]
"""A result of a loop: the number of its step, and of the statement among those of the step."""


class LoopWriter:
    """Writes one loop: each statement before the first that needs it."""

    def __init__(self, texts: Texts, plan: Plan, memory: Memory, loop: Loop) -> None:
        self.texts, self.plan, self.memory, self.loop = texts, plan, memory, loop
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        """The name of what was computed, by its text."""
        self.done: dict[tuple[int, int], str] = {}
        self.steps = {int(texts.owner[s.definition.elements[0]]): s for s in loop.steps}
        self.before: list[str] = []
        self.after: list[str] = []

    def results(self) -> list[Result]:
        """All that the loop stores or adds up."""
        found = []
        for i, step in self.steps.items():
            kept = np.full(len(step.results), True) if step.accumulates else self._places(i).min(-1) >= 0
            found += [(i, v) for v in np.flatnonzero(kept).tolist()]
        return found

    def _places(self, i: int) -> np.ndarray:
        return self.memory.place[self.steps[i].results]  # type: ignore[no-any-return]

    def written(self, results: Sequence[Result]) -> list[str]:
        """The text of a loop that has these results."""
        for i, v in results:
            step = self.steps[i]
            kind = kind_of(step.definition.dtype)
            pointer = kind.lower()
            if step.accumulates:
                (element,) = step.results[v].tolist()
                self.before.append(f"    {kind} s{i}_{v} = {{}};")
                text = self._sum(i, v, kind)
                self.lines.append(f"s{i}_{v} += {text};")
                self.after.append(f"    keep({pointer}, {self.memory.place[element]}, s{i}_{v});")
            else:
                name = self._statement(i, v)
                self.lines.append(f"{pointer}[{self.texts.affine(self._places(i)[v])}] = {name};")
        inner = [f"        {line}" for line in self.lines]
        if self.loop.turns == 1:
            return [*self.before, "    ONCE {", *inner, "    }", *self.after]
        return [*self.before, f"    TURNS(c, {self.loop.turns}) {{", *inner, "    }", *self.after]

    def _statement(self, i: int, v: int) -> str:
        """The name of a statement's result, which is written now unless it was before."""
        stack = [(i, v)]
        while stack:
            at = stack[-1]
            if at in self.done:
                stack.pop()
                continue
            missing = [n for n in self._needs(*at) if n not in self.done]
            if missing:
                stack += missing[::-1]
                continue
            stack.pop()
            step = self.steps[at[0]]
            kind = kind_of(step.definition.dtype)
            text = self._sum(*at, kind) if isinstance(step.definition.what, Sum) else self._call(*at)
            self.done[at] = self._named(text, kind)
        return self.done[i, v]

    def _needs(self, i: int, v: int) -> Iterator[tuple[int, int]]:
        """The statements of this loop whose results a statement reads."""
        for operand, near in zip(self.steps[i].operands, self.plan.near[i], strict=True):
            for element in operand[v][near[v]][..., 0].reshape(-1).tolist():
                yield int(self.texts.owner[element]), int(self.plan.vector[element])

    def _named(self, text: str, kind: str) -> str:
        if text not in self.names:
            self.names[text] = f"v{len(self.names)}"
            self.lines.append(f"const {kind} {self.names[text]} = {text};")
        return self.names[text]

    def _operand(self, i: int, k: int, at: int | tuple[int, int]) -> str:
        """Operand `k` of a step, of one statement, or of one term of it."""
        step = self.steps[i]
        row, kind = step.operands[k][at], kind_of(step.kinds[k])
        if self.plan.near[i][k][at]:
            return self._statement(int(self.texts.owner[row[0]]), int(self.plan.vector[row[0]]))
        if self.plan.fixed[i][k][at]:
            text = self.texts.same_for_all(row, kind)
            return text if "given" not in text else self._named(text, kind)
        return self._named(f"{kind.lower()}[{self.texts.affine(self.memory.places(row, kind))}]", kind)

    def _call(self, i: int, v: int) -> str:
        step = self.steps[i]
        what = step.definition.what
        assert isinstance(what, Pointwise)
        kind = kind_of(step.definition.dtype)
        names = [self._operand(i, k, v) for k in range(len(step.operands))]
        if what.function == "as":
            return _cast(step, names[0], kind)
        if what.function == "where":
            return f"where<{kind}>({', '.join(names)})"
        form = FORMS.get(what.function)
        return form.format(*names) if form else f"{what.function}({', '.join(names)})"

    def _sum(self, i: int, v: int, kind: str) -> str:
        factors = [f[v] for f in self.steps[i].operands]  # each [terms, turns]
        numbers = [self.texts.table.value(f) for f in factors]
        zero = np.any([(n == 0).all(-1) for n in numbers], axis=0)
        one = [(n == 1).all(-1) for n in numbers]
        terms = []
        for t in np.flatnonzero(~zero).tolist():
            names = [self._operand(i, k, (v, t)) for k in range(len(factors)) if not one[k][t]]
            terms.append(" * ".join(names) or f"all<{kind}>(1)")
        return " + ".join(terms) or f"{kind}{{}}"


def held(lines: Sequence[str]) -> int:
    """The largest number of registers, of 32 bits, that named values take at once."""
    size: dict[str, int] = {}
    change = [0] * (len(lines) + 1)
    last: dict[str, int] = {}
    for at, line in enumerate(lines):
        if match := re.match(r"const (\w) (v\d+) =", line):
            size[match[2]] = 2 if match[1] in "DI" else 1
            change[at] += size[match[2]]
        last |= dict.fromkeys(re.findall(r"\bv\d+", line), at)
    for name, at in last.items():
        change[at + 1] -= size[name]
    return max(itertools.accumulate(change))


def _cast(step: Step, name: str, kind: str) -> str:
    if kind == "B":
        return f"truth({name} != 0)"
    return f"number<{kind}>({name})" if kind_of(step.kinds[0]) == "B" else f"as<{kind}>({name})"


def _literal(value: float, kind: str) -> str:
    if kind == "B":
        return "-1" if value else "0"
    if kind == "I":
        return str(int(value))
    return f"{float(np.float32(value))!r}f" if kind == "F" else repr(float(value))
