"""Component code as C++: one function for each loop and product, and one that calls them for each few rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .elements import Definition, Elements, Gather, Pointwise, Product, Rows, Sum, Table, Unsupported, Whole, needed
from .follow import Followed
from .loops import Loop, Plan, Step, plan
from .memory import Memory, laid_out
from .recompute import recomputed
from .values import Given, kind_of

PRELUDE = Path(__file__).with_name("prelude.h").read_text()

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


@dataclasses.dataclass(frozen=True)
class Output:
    """The use of one result of a body."""

    kind: Literal["store", "add", "values", "sum"]
    """store: entries of each row. add: added to the row of a table, or with the number of that row, one row after the
    other, if there is memory for the numbers. values: one row after the other. sum: added up over rows."""
    value: int
    """The position of the values among the outputs of the body."""
    index: int = -1
    """That of the row to add to."""
    alone: bool = True
    """Nothing else is added to the table."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A body as a C++ program."""

    source: str
    scratch: int
    """Bytes of memory that each thread needs."""
    lanes: int
    """Rows that run side by side."""
    statements: int


def written(followed: Followed, given: Sequence[Given], outputs: Sequence[Output]) -> Program:
    """The C++ of a body."""
    return _Writer(followed, given, outputs).program()


class _Writer:
    def __init__(self, followed: Followed, given: Sequence[Given], outputs: Sequence[Output]) -> None:
        self.table: Table = followed.table
        self.given, self.outputs = given, outputs
        self.values = [v.elements.numpy().reshape(-1) for v in followed.outputs]
        self.dtypes = [v.dtype for v in followed.outputs]
        self.definitions = needed(self.table, self.table.definitions, self.values)
        self.plan: Plan = plan(self.table, self.definitions, self.values)
        again = recomputed(self.table, self.definitions, self.plan, self.plan.steps)
        if again is not None:
            definitions, earliest = again
            self.definitions = needed(self.table, definitions, self.values)
            self.plan = plan(self.table, self.definitions, self.values, earliest)
        self.owner = np.full(self.table.count, -1)
        for i, d in enumerate(self.definitions):
            self.owner[d.elements] = i
        self.constants: list[tuple[int, str]] = []
        self.last_use: dict[int, int] = {}
        self._find_uses()
        self.memory: Memory = laid_out(self.plan, self.definitions, self.last_use, self.constants)
        self.functions: list[str] = []
        self.tables: dict[str, str] = {}
        self.statements = 0
        wide = torch.float32 in (d.dtype for d in self.definitions) or torch.float32 in self.dtypes
        self.lanes = 16 if wide else 8

    # ---- What is read from memory, and when for the last time.

    def _find_uses(self) -> None:
        for number, phase in enumerate(self.plan.phases):
            for loop in phase.loops:
                for step in loop.steps:
                    for operand, dtype in zip(step.operands, step.kinds, strict=True):
                        for row in operand.reshape(-1, operand.shape[-1]):
                            if not self._one_for_all(row) and not self._near(row, step, number):
                                self._use(row, kind_of(dtype), number)
            for block in phase.blocks:
                if isinstance(block.what, Product | Gather):
                    operand = block.operands[0]
                    kind = "I" if isinstance(block.what, Gather) else kind_of(block.dtype)
                    self._use(operand.reshape(-1), kind, number)
        for o in self.outputs:
            for k in (o.value, o.index):
                if k >= 0:
                    self._use(self.values[k], kind_of(self.dtypes[k]), self._output_phase(o))

    def _use(self, elements: Elements, kind: str, phase: int) -> None:
        fixed = self.plan.phase_of[elements] < 0
        self.constants += [(e, kind) for e in np.unique(elements[fixed]).tolist()]
        for i in np.unique(self.owner[elements[~fixed]]).tolist():
            self.last_use[i] = max(self.last_use.get(i, 0), phase)

    def _ready(self, elements: Elements) -> int:
        return max(0, int(self.plan.phase_of[elements].max(initial=0)))

    def _one_for_all(self, row: Elements) -> bool:
        return bool((self.plan.phase_of[row] < 0).all())

    def _near(self, row: Elements, step: Step, phase: int) -> bool:
        first = row[0]
        if self.plan.vector[first] < 0 or self.plan.phase_of[first] != phase:
            return False
        same = (self.owner[row] == self.owner[first]).all() and (self.plan.vector[row] == self.plan.vector[first]).all()
        turns = int(self.plan.turn[self.definitions[self.owner[first]].elements].max()) + 1
        return bool(same and turns == step.turns and (self.plan.turn[row] == np.arange(step.turns)).all())

    # ---- The program.

    def program(self) -> Program:
        calls = []
        for number, phase in enumerate(self.plan.phases):
            calls += [self._block(d) for d in phase.blocks if not isinstance(d.what, Product)]
            calls += [self._loop(loop, number) for loop in phase.loops]
            calls += [self._block(d) for d in phase.blocks if isinstance(d.what, Product)]
            calls += [line for o in self.outputs if self._output_phase(o) == number for line in self._output(o)]
        if not self.plan.phases:
            calls += [line for o in self.outputs for line in self._output(o)]
        starts, sums_first, sums_last = self._parts()
        source = "\n".join(
            [
                f"#define LANES {self.lanes}",
                PRELUDE,
                "struct Memory { F* f; D* d; I* i; B* b; const void* const* given; };",
                *self.tables.values(),
                *self.functions,
                'extern "C" void run(int64_t first, int64_t last, const int64_t* order, const void* const* given,',
                "    const int64_t* extent, void* const* results, int64_t* const* numbers, char* scratch) {",
                f"    Memory m = {{{', '.join(starts)}, given}};",
                *self._constant_lines(),
                *sums_first,
                "    for (int64_t at = first; at < last; at += LANES) {",
                "        const int lanes = last - at < LANES ? last - at : LANES;",
                "        int64_t row[LANES], local[LANES], target[LANES];",
                "        B valid;",
                "        for (int l = 0; l < LANES; ++l) {",
                "            local[l] = at + (l < lanes ? l : lanes - 1);",
                "            row[l] = order ? order[local[l]] : local[l];",
                "            local[l] -= first;",
                "            valid[l] = l < lanes ? -1 : 0;",
                "        }",
                "        (void)target; (void)valid; (void)extent; (void)numbers;",
                *(f"        {c}" for c in calls),
                "    }",
                *sums_last,
                "}",
            ]
        )
        return Program(source, self._scratch(), self.lanes, self.statements)

    def _parts(self) -> tuple[list[str], list[str], list[str]]:
        starts, offset = [], 0
        for kind in "FDIB":
            starts.append(f"({kind}*)(scratch + {offset})")
            offset += self._bytes(kind)
        first, last = [], []
        for k, o in enumerate(self.outputs):
            if o.kind == "sum":
                kind, width = kind_of(self.dtypes[o.value]), len(self.values[o.value])
                first.append(f"    {kind}* const sum{k} = ({kind}*)(scratch + {offset});")
                first.append(f"    for (int j = 0; j < {width}; ++j) sum{k}[j] = {kind}{{}};")
                c_type = C_TYPES[self.dtypes[o.value]]
                last.append(f"    for (int j = 0; j < {width}; ++j) (({c_type}*)results[{k}])[j] = total(sum{k}[j]);")
                offset += -(-width * self._size(kind) // 128) * 128
        self._end = offset
        return starts, first, last

    def _size(self, kind: str) -> int:
        return self.lanes * (8 if kind in "DI" else 4)

    def _bytes(self, kind: str) -> int:
        return -(-self.memory.size[kind] * self._size(kind) // 128) * 128

    def _scratch(self) -> int:
        return self._end + 256

    def _constant_lines(self) -> Iterator[str]:
        for (element, kind), place in self.memory.constants.items():
            yield f"    m.{kind.lower()}[{place}] = {self._same_for_all(np.array([element]), kind, 'm.given')};"

    # ---- Rows, gathers, products, results.

    def _block(self, d: Definition) -> str:
        start = int(self.memory.place[d.elements[0]]) - int(d.places[0] - d.places.min())
        first, count = int(d.places.min()), int(d.places.max() - d.places.min()) + 1
        kind = kind_of(d.dtype)
        to = f"m.{kind.lower()} + {start}"
        match d.what:
            case Rows(i):
                width = _width(self.given[i].shape)
                base = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}]"
                return f"read<{kind}>({base}, {width}, row, {first}, {count}, {to});"
            case Gather(i, index, split):
                width = _width(d.shape)
                base = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}]"
                at = f"m.i[{self.memory.places(index, 'I')[0]}]"
                pointed = (
                    f"for (int l = 0; l < LANES; ++l) target[l] = {at}[l] + ({at}[l] < 0) * extent[{i}] * {split};"
                )
                return f"{pointed} read<{kind}>({base}, {width}, target, {first}, {count}, {to});"
            case Product(left, right):
                return self._product(d, left, right, kind, start)
        raise AssertionError(d)

    def _product(self, d: Definition, left: Elements, right: Elements, kind: str, start: int) -> str:
        terms, width = right.shape
        i, address = self._whole(right)
        row = int(address[1, 0] - address[0, 0]) if terms > 1 else 0
        column = int(address[0, 1] - address[0, 0]) if width > 1 else 0
        expected = address[0, 0] + row * np.arange(terms)[:, None] + column * np.arange(width)
        if not (address == expected).all():
            raise Unsupported("a matrix of weights in pieces")
        weights = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}] + {address[0, 0]}"
        at = self._static("int", self.memory.places(left, kind).reshape(-1).tolist())
        call = f"product<{kind}, {terms}, {width}, {row}, {column}>"
        memory = f"m.{kind.lower()}"
        self.statements += terms * width * len(left) // 64
        lines = [
            f"{call}({memory}, {at} + {j * terms}, {weights}, {memory} + {start + j * width});"
            for j in range(len(left))
        ]
        return " ".join(lines)

    def _output_phase(self, o: Output) -> int:
        phases = [self._ready(self.values[k]) for k in (o.value, o.index) if k >= 0]
        return max(phases)

    def _output(self, o: Output) -> Iterator[str]:
        k = self.outputs.index(o)
        values, dtype = self.values[o.value], self.dtypes[o.value]
        kind, c_type = kind_of(dtype), C_TYPES[dtype]
        places = self.memory.places(values, kind)
        at, width, memory = self._static("int", places.tolist()), len(values), f"m.{kind.lower()}"
        if o.kind == "sum":
            yield f"for (int j = 0; j < {width}; ++j) sum{k}[j] += where(valid, {memory}[{at}[j]], {kind}{{}});"
        elif o.kind == "add":
            (index,) = self.memory.places(self.values[o.index], "I").tolist()
            yield f"for (int l = 0; l < LANES; ++l) target[l] = m.i[{index}][l];"
            yield f"if (!numbers[{k}]) add<{kind}>({memory}, {at}, {width}, ({c_type}*)results[{k}], target, lanes);"
            yield f"else {{ for (int l = 0; l < lanes; ++l) numbers[{k}][local[l]] = target[l];"
            yield f"write<{kind}>({memory}, {at}, {width}, ({c_type}*)results[{k}], local, lanes); }}"
        else:
            rows = "row" if o.kind == "store" else "local"
            yield f"write<{kind}>({memory}, {at}, {width}, ({c_type}*)results[{k}], {rows}, lanes);"

    # ---- Loops.

    def _loop(self, loop: Loop, phase: int) -> str:
        name = f"loop{len(self.functions)}"
        writer = _LoopWriter(self, loop, phase)
        body = writer.written()
        self.statements += len(writer.lines)
        arguments = "F* __restrict f, D* __restrict d, I* __restrict i, B* __restrict b, const void* const* given"
        self.functions.append("\n".join([f"static __attribute__((noinline)) void {name}({arguments}) {{", *body, "}"]))
        return f"{name}(m.f, m.d, m.i, m.b, given);"

    def _static(self, c_type: str, numbers: Sequence[int | float]) -> str:
        text = ", ".join(map(str, numbers))
        if text not in self.tables:
            name = f"table{len(self.tables)}"
            self.tables[text] = f"static const {c_type} {name}[] = {{{text}}};"
        return self.tables[text].split()[3].split("[")[0]

    def _whole(self, row: Elements) -> tuple[int, np.ndarray]:
        """The input that elements are of, and their addresses in it."""
        owners = np.unique(self.owner[row])
        if len(owners) != 1:
            raise Unsupported("numbers of several inputs in one loop")
        definition = self.definitions[owners[0]]
        assert isinstance(definition.what, Whole)
        lookup = np.searchsorted(definition.elements, row)
        return definition.what.input, definition.places[lookup]

    def _same_for_all(self, row: Elements, kind: str, given: str = "given") -> str:
        """A vector of what is the same for all rows, in each turn."""
        numbers = self.table.value(row)
        if not np.isnan(numbers).any():
            if (numbers == numbers[0]).all():
                return f"all<{kind}>({_literal(numbers[0], kind)})"
            c_type = {"F": "float", "D": "double", "I": "int64_t", "B": "int32_t"}[kind]
            return f"all<{kind}>({self._static(c_type, [_literal(n, kind) for n in numbers.tolist()])}[c])"  # type: ignore[misc]
        i, address = self._whole(row)
        dtype = self.given[i].dtype
        entry = f"((const {C_TYPES[dtype]}*){given}[{i}])[{self._affine(address)}]"
        return f"all<{kind}>({'-(int)' if dtype == torch.bool else ''}{entry})"

    def _affine(self, address: np.ndarray) -> str:
        """An address as a function of the turn."""
        steps = np.diff(address)
        if not len(steps) or not steps.any():
            return str(address[0])
        if (steps == steps[0]).all():
            return f"{address[0]} + {steps[0]} * c"
        return f"{self._static('int', address.tolist())}[c]"


class _LoopWriter:
    """Writes one loop: each statement before the first that needs it."""

    def __init__(self, writer: _Writer, loop: Loop, phase: int) -> None:
        self.writer, self.loop, self.phase = writer, loop, phase
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        """The name of what was computed, by its text."""
        self.done: dict[tuple[int, int], str] = {}
        self.steps = {writer.owner[s.definition.elements[0]]: s for s in loop.steps}
        self.before: list[str] = []
        self.after: list[str] = []

    def written(self) -> list[str]:
        memory = self.writer.memory
        for i, step in self.steps.items():
            kind = kind_of(step.definition.dtype)
            pointer = kind.lower()
            if step.accumulates:
                for v, (element,) in enumerate(step.results.tolist()):
                    self.before.append(f"    {kind} s{i}_{v} = {{}};")
                    text = self._sum(step, v, kind)
                    self.lines.append(f"s{i}_{v} += {text};")
                    self.after.append(f"    {pointer}[{memory.place[element]}] = s{i}_{v};")
                continue
            places = memory.place[step.results]
            for v in np.flatnonzero((places >= 0).all(-1)).tolist():
                name = self._statement(int(i), v)
                self.lines.append(f"{pointer}[{self.writer._affine(places[v])}] = {name};")
        inner = [f"        {line}" for line in self.lines]
        if self.loop.turns == 1:
            return [*self.before, "    {", *inner, "    }", *self.after]
        return [*self.before, f"    for (int c = 0; c < {self.loop.turns}; ++c) {{", *inner, "    }", *self.after]

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
            text = self._sum(step, at[1], kind) if isinstance(step.definition.what, Sum) else self._call(step, at[1])
            self.done[at] = self._named(text, kind)
        return self.done[i, v]

    def _needs(self, i: int, v: int) -> Iterator[tuple[int, int]]:
        step = self.steps[i]
        for operand in step.operands:
            for row in operand[v].reshape(-1, operand.shape[-1]):
                if self.writer._near(row, step, self.phase):
                    yield int(self.writer.owner[row[0]]), int(self.writer.plan.vector[row[0]])

    def _named(self, text: str, kind: str) -> str:
        if text not in self.names:
            self.names[text] = f"v{len(self.names)}"
            self.lines.append(f"const {kind} {self.names[text]} = {text};")
        return self.names[text]

    def _operand(self, step: Step, row: Elements, kind: str) -> str:
        writer = self.writer
        if writer._near(row, step, self.phase):
            return self._statement(int(writer.owner[row[0]]), int(writer.plan.vector[row[0]]))
        if writer._one_for_all(row):
            text = writer._same_for_all(row, kind)
            return text if "given" not in text else self._named(text, kind)
        places = writer.memory.places(row, kind)
        return self._named(f"{kind.lower()}[{writer._affine(places)}]", kind)

    def _call(self, step: Step, v: int) -> str:
        what = step.definition.what
        assert isinstance(what, Pointwise)
        kind = kind_of(step.definition.dtype)
        names = [self._operand(step, o[v], kind_of(k)) for o, k in zip(step.operands, step.kinds, strict=True)]
        if what.function == "as":
            return self._cast(step, v, names[0], kind)
        if what.function == "where":
            return f"where<{kind}>({', '.join(names)})"
        form = FORMS.get(what.function)
        return form.format(*names) if form else f"{what.function}({', '.join(names)})"

    def _cast(self, step: Step, v: int, name: str, kind: str) -> str:
        found = kind_of(step.kinds[0])
        if kind == "B":
            return f"truth({name} != 0)"
        return f"number<{kind}>({name})" if found == "B" else f"as<{kind}>({name})"

    def _sum(self, step: Step, v: int, kind: str) -> str:
        factors = [f[v] for f in step.operands]  # each [terms, turns]
        terms = []
        for t in range(factors[0].shape[0]):
            numbers = [self.writer.table.value(f[t]) for f in factors]
            if any((n == 0).all() for n in numbers):
                continue
            names = [
                self._operand(step, f[t], kind) for f, n in zip(factors, numbers, strict=True) if not (n == 1).all()
            ]
            terms.append(" * ".join(names) or f"all<{kind}>(1)")
        text = terms[0] if terms else f"{kind}{{}}"
        for term in terms[1:]:
            text += f" + {term}"
        return text


def _width(shape: Sequence[int | None]) -> int:
    width = 1
    for n in shape:
        assert n is not None
        width *= n
    return width


def _literal(value: float, kind: str) -> str:
    if kind == "B":
        return "-1" if value else "0"
    if kind == "I":
        return str(int(value))
    return f"{float(np.float32(value))!r}f" if kind == "F" else repr(float(value))
