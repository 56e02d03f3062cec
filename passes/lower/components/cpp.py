"""Component code as C++: one function for each loop and product, and one that calls them for each few rows."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .elements import Definition, Elements, Gather, Lookup, Pointwise, Product, Rows, Sum, Table, Unsupported, needed
from .follow import Followed
from .loops import Loop, Plan, plan
from .memory import Memory, laid_out
from .outer import Outer, Summed, summed
from .recompute import recomputed
from .statements import C_TYPES, LoopWriter, Texts
from .values import Given, check_size, kind_of

FLUSHED = 32
"""Blocks of lanes after which sums of outer products are added to those in double precision."""

PRELUDE = Path(__file__).with_name("prelude.h").read_text()


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
        self.widths = [len(v) for v in self.values]
        self.dtypes = [v.dtype for v in followed.outputs]
        self.sums: dict[int, Summed] = {}
        """What is added up, by the number of the output. Its values are those that are in no outer product."""
        for k, o in enumerate(outputs):
            if o.kind == "sum":
                self.sums[k] = summed(self.table, self.values[o.value])
                self.values[o.value] = self.sums[k].rest
        outers = [outer for s in self.sums.values() for outer in s.outers]
        kept = [*self.values, *(e.reshape(-1) for o in outers for e in (o.left, o.right))]
        self.definitions = needed(self.table, self.table.definitions, kept)
        for d in self.definitions:
            if isinstance(d.what, Pointwise | Sum):
                check_size((len(d.elements),))
        self.plan: Plan = plan(self.table, self.definitions, kept)
        again = recomputed(self.table, self.definitions, self.plan)
        if again is not None:
            definitions, earliest = again
            self.definitions = needed(self.table, definitions, kept)
            self.plan = plan(self.table, self.definitions, kept, earliest)
        self.texts = Texts(self.table, given, self.definitions)
        self.owner = self.texts.owner
        self.constants: list[tuple[int, str]] = []
        self.last_use: dict[int, int] = {}
        self._find_uses()
        self.memory: Memory = laid_out(self.plan, self.definitions, self.last_use, self.constants)
        self.functions: list[str] = []
        self.statements = 0
        wide = torch.float32 in (d.dtype for d in self.definitions) or torch.float32 in self.dtypes
        self.lanes = 16 if wide else 8

    # ---- What is read from memory, and when for the last time.

    def _find_uses(self) -> None:
        for i, step in self.plan.steps.items():
            phase = int(self.plan.phase_of[step.definition.elements[0]])
            for operand, dtype, near, fixed in zip(
                step.operands, step.kinds, self.plan.near[i], self.plan.fixed[i], strict=True
            ):
                self._use(operand[~near & ~fixed].reshape(-1), kind_of(dtype), phase)
        for number, phase_steps in enumerate(self.plan.phases):
            for block in phase_steps.blocks:
                if isinstance(block.what, Product | Gather | Lookup):
                    kind = "I" if isinstance(block.what, Gather) else kind_of(block.dtype)
                    self._use(block.operands[0].reshape(-1), kind, number)
        for o in self.outputs:
            for elements, kind in self._read_by(o):
                self._use(elements, kind, self._output_phase(o))

    def _read_by(self, o: Output) -> Iterator[tuple[Elements, str]]:
        """The elements that a result is made of, and their kind."""
        for k in (o.value, o.index):
            if k >= 0:
                yield self.values[k], kind_of(self.dtypes[k])
        if o.kind == "sum":
            for outer in self.sums[self.outputs.index(o)].outers:
                yield outer.left.reshape(-1), kind_of(self.dtypes[o.value])
                yield outer.right.reshape(-1), kind_of(self.dtypes[o.value])

    def _use(self, elements: Elements, kind: str, phase: int) -> None:
        fixed = self.plan.phase_of[elements] < 0
        self.constants += [(e, kind) for e in np.unique(elements[fixed]).tolist()]
        for i in np.unique(self.owner[elements[~fixed]]).tolist():
            self.last_use[i] = max(self.last_use.get(i, 0), phase)

    def _ready(self, elements: Elements) -> int:
        return max(0, int(self.plan.phase_of[elements].max(initial=0)))

    # ---- The program.

    def program(self) -> Program:
        calls = []
        for number, phase in enumerate(self.plan.phases):
            calls += [self._block(d) for d in phase.blocks if not isinstance(d.what, Product | Lookup)]
            calls += self._lookups(phase.blocks)
            calls += [self._loop(loop) for loop in phase.loops]
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
                *self.texts.tables.values(),
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
                kind, width = self._sum_kind(o), len(self.values[o.value])
                first.append(f"    {kind}* const sum{k} = ({kind}*)(scratch + {offset});")
                first.append(f"    for (int j = 0; j < {width}; ++j) sum{k}[j] = {kind}{{}};")
                offset += -(-width * self._size(kind) // 128) * 128
                result = f"(({C_TYPES[self.dtypes[o.value]]}*)results[{k}])"
                if not self.sums[k].outers:
                    last.append(f"    for (int j = 0; j < {width}; ++j) {result}[j] = total(sum{k}[j]);")
                    continue
                first.append(f"    double* const total{k} = (double*)(scratch + {offset});")
                first.append(f"    for (int j = 0; j < {self.widths[o.value]}; ++j) total{k}[j] = 0;")
                offset += -(-self.widths[o.value] * 8 // 128) * 128
                for number, outer in enumerate(self.sums[k].outers):
                    lines, size = self._outer_memory(outer, kind_of(self.dtypes[o.value]), f"{k}_{number}", offset)
                    first += lines
                    offset += size
                last += [f"    {line}" for number in range(len(self.sums[k].outers)) for line in self._flush(k, number)]
                last.append(f"    for (int j = 0; j < {self.widths[o.value]}; ++j) {result}[j] = total{k}[j];")
                if width:
                    places = self.texts.static("int", self.sums[k].places.tolist())
                    last.append(f"    for (int j = 0; j < {width}; ++j) {result}[{places}[j]] += total(sum{k}[j]);")
        self._end = offset
        return starts, first, last

    def _sum_kind(self, o: Output) -> str:
        """The kind of numbers in which many rows are added up: double precision."""
        kind = kind_of(self.dtypes[o.value])
        return "D" if kind == "F" else kind

    def _size(self, kind: str) -> int:
        return self.lanes * (8 if kind in "DI" else 4)

    def _bytes(self, kind: str) -> int:
        return -(-self.memory.size[kind] * self._size(kind) // 128) * 128

    def _scratch(self) -> int:
        return self._end + 256

    def _constant_lines(self) -> Iterator[str]:
        for (element, kind), place in self.memory.constants.items():
            yield f"    m.{kind.lower()}[{place}] = {self.texts.same_for_all(np.array([element]), kind, 'm.given')};"

    # ---- Rows, gathers, products, results.

    def _block(self, d: Definition) -> str:
        start = int(self.memory.place[d.elements[0]]) - int(d.places[0] - d.places.min())
        first, count = int(d.places.min()), int(d.places.max() - d.places.min()) + 1
        kind = kind_of(d.dtype)
        to = f"m.{kind.lower()} + {start}"
        match d.what:
            case Rows(i):
                width = math.prod(n for n in self.given[i].shape if n is not None)
                base = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}]"
                return f"read<{kind}>({base}, {width}, row, {first}, {count}, {to});"
            case Gather(i, index, split):
                width = math.prod(d.shape)
                base = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}]"
                at = f"m.i[{self.memory.places(index, 'I')[0]}]"
                pointed = (
                    f"for (int l = 0; l < LANES; ++l) target[l] = {at}[l] + ({at}[l] < 0) * extent[{i}] * {split};"
                )
                return f"{pointed} read<{kind}>({base}, {width}, target, {first}, {count}, {to});"
            case Product(left, right):
                return self._product(d, left, right, kind, start)
        raise AssertionError(d)

    def _lookups(self, blocks: Sequence[Definition]) -> Iterator[str]:
        """Calls of `lookup`: one for each table and number, of which values and slopes are asked for together."""
        together: dict[tuple[int, int, int], dict[int, Definition]] = defaultdict(dict)
        times: Counter[tuple[int, int, int]] = Counter()
        for d in blocks:
            if isinstance(d.what, Lookup):
                asked = d.what.input, int(d.what.x[0]), d.what.order
                together[(*asked[:2], times[asked])][d.what.order] = d
                times[asked] += 1
        for (i, x, _), by_order in together.items():
            first = next(iter(by_order.values()))
            what, kind, functions = first.what, kind_of(first.dtype), math.prod(first.shape)
            assert isinstance(what, Lookup)
            memory = f"m.{kind.lower()}"
            number = f"{memory}[{self.memory.places(np.array([x]), kind)[0]}]"
            base = f"(const {C_TYPES[first.dtype]}*)given[{i}]"
            to = ", ".join(f"{memory} + {self.memory.place[d.elements[0]]}" for d in by_order.values())
            orders = ", ".join(map(str, by_order))
            self.statements += functions * len(by_order) // 8
            span = f"{what.intervals}, {what.low!r}, {what.high!r}"
            yield f"lookup<{kind}, {functions}, {orders}>({number}, {base}, {span}, {to});"

    def _product(self, d: Definition, left: Elements, right: Elements, kind: str, start: int) -> str:
        terms, width = right.shape
        i, address = self.texts.whole(right)
        row = int(address[1, 0] - address[0, 0]) if terms > 1 else 0
        column = int(address[0, 1] - address[0, 0]) if width > 1 else 0
        expected = address[0, 0] + row * np.arange(terms)[:, None] + column * np.arange(width)
        if not (address == expected).all():
            raise Unsupported("a matrix of weights in pieces")
        weights = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}] + {address[0, 0]}"
        at = self.texts.static("int", self.memory.places(left, kind).reshape(-1).tolist())
        call = f"product<{kind}, {terms}, {width}, {row}, {column}>"
        memory = f"m.{kind.lower()}"
        self.statements += terms * width * len(left) // 64
        lines = [
            f"{call}({memory}, {at} + {j * terms}, {weights}, {memory} + {start + j * width});"
            for j in range(len(left))
        ]
        return " ".join(lines)

    # ---- Outer products.

    def _outer_memory(self, outer: Outer, kind: str, name: str, offset: int) -> tuple[list[str], int]:
        """Memory for the sum over some rows, and for the right side of a few rows: declarations and bytes."""
        (m, terms), n = outer.left.shape, outer.right.shape[1]
        vectors = -(-n // self.lanes)
        size = self._size(kind)
        lines = [
            f"    {kind}* const outer{name} = ({kind}*)(scratch + {offset});",
            f"    for (int j = 0; j < {m * vectors}; ++j) outer{name}[j] = {kind}{{}};",
            f"    {kind}* const packed{name} = ({kind}*)(scratch + {offset + m * vectors * size});",
        ]
        return lines, (m + terms * self.lanes) * vectors * size

    def _flush(self, k: int, number: int) -> Iterator[str]:
        """Add what was summed over some rows to the sum over all of them, and begin anew."""
        outer = self.sums[k].outers[number]
        (m, _), n = outer.left.shape, outer.right.shape[1]
        start, down, right = (int(outer.places[at]) for at in ((0, 0), (1, 0), (0, 1)))
        down, right = down - start, right - start
        even = start + down * np.arange(m)[:, None] + right * np.arange(n)
        if (outer.places == even).all():
            place = f"{start} + {down} * i + {right} * j"
        else:
            place = f"{self.texts.static('int', outer.places.reshape(-1).tolist())}[i * {n} + j]"
        name = f"outer{k}_{number}"
        vectors = -(-n // self.lanes)
        entry = f"entries({name})[i * {vectors} * LANES + j]"
        yield f"for (int i = 0; i < {m}; ++i)"
        yield f"    for (int j = 0; j < {n}; ++j) total{k}[{place}] += {outer.factor!r} * {entry};"
        yield f"memset({name}, 0, {m * vectors} * sizeof *{name});"

    def _outer(self, k: int, number: int) -> Iterator[str]:
        outer = self.sums[k].outers[number]
        kind = kind_of(self.dtypes[self.outputs[k].value])
        (m, terms), n = outer.left.shape, outer.right.shape[1]
        left, right = (
            self.texts.static("int", self.memory.places(e, kind).reshape(-1).tolist())
            for e in (outer.left, outer.right)
        )
        memory, name = f"m.{kind.lower()}", f"{k}_{number}"
        self.statements += m * n * terms // 64
        yield f"add_outer({memory}, {left}, {m}, {right}, {n}, {terms}, packed{name}, outer{name}, lanes);"
        yield f"if ((at - first) / LANES % {FLUSHED} == {FLUSHED - 1}) {{"
        yield from (f"    {line}" for line in self._flush(k, number))
        yield "}"

    def _output_phase(self, o: Output) -> int:
        return max(self._ready(elements) for elements, _ in self._read_by(o))

    def _output(self, o: Output) -> Iterator[str]:
        k = self.outputs.index(o)
        values, dtype = self.values[o.value], self.dtypes[o.value]
        kind, c_type = kind_of(dtype), C_TYPES[dtype]
        places = self.memory.places(values, kind)
        at, width, memory = self.texts.static("int", places.tolist()), len(values), f"m.{kind.lower()}"
        if o.kind == "sum":
            term = f"as<{self._sum_kind(o)}>(where(valid, {memory}[{at}[j]], {kind}{{}}))"
            if width:
                yield f"for (int j = 0; j < {width}; ++j) sum{k}[j] += {term};"
            for number in range(len(self.sums[k].outers)):
                yield from self._outer(k, number)
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

    def _loop(self, loop: Loop) -> str:
        name = f"loop{len(self.functions)}"
        writer = LoopWriter(self.texts, self.plan, self.memory, loop)
        body = writer.written()
        self.statements += len(writer.lines)
        arguments = "F* __restrict f, D* __restrict d, I* __restrict i, B* __restrict b, const void* const* given"
        self.functions.append("\n".join([f"static __attribute__((noinline)) void {name}({arguments}) {{", *body, "}"]))
        return f"{name}(m.f, m.d, m.i, m.b, given);"
