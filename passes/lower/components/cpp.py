"""Component code as C++: one function for each loop and product, and one that calls them for each few rows."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from .elements import Definition, Elements, Gather, Lookup, Pointwise, Product, Rows, Sum, Table, Unsupported, needed
from .follow import Followed
from .loops import Loop, Plan, plan
from .memory import Memory, laid_out
from .outer import Outer, Summed, summed
from .recompute import recomputed
from .statements import C_TYPES, LoopWriter, Result, Texts, held
from .target import BYTES, PROCESSOR, Target
from .values import Given, check_size, kind_of
from .work import Work, moved, multiplied, of_statements

FLUSHED = 32
"""Blocks of lanes after which sums of outer products are added to those in double precision."""


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
    work: Work
    """Of one row."""


def written(
    followed: Followed, given: Sequence[Given], outputs: Sequence[Output], target: Target = PROCESSOR
) -> Program:
    """The C++ of a body, for a processor or what else there is."""
    return _Writer(followed, given, outputs, target).program()


class _Writer:
    def __init__(self, followed: Followed, given: Sequence[Given], outputs: Sequence[Output], target: Target) -> None:
        self.target = target
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
        self.work = Work()
        self.lanes = target.lanes(self.memory.size, self._is_single())

    def _is_single(self) -> bool:
        """True unless most floating-point numbers are in double precision.

        A few of single precision (a cast of a comparison) are in most programs in double precision.
        """
        numbers = Counter(dict.fromkeys(self.dtypes, 1))
        for d in self.definitions:
            numbers[d.dtype] += len(d.elements)
        return numbers[torch.float32] >= numbers[torch.float64]

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
            calls.append("MEET")
            results = [line for o in self.outputs if self._output_phase(o) == number for line in self._output(o)]
            calls += [*results, "MEET"] if results else []
        if not self.plan.phases:
            calls += [line for o in self.outputs for line in self._output(o)]
        starts, sums_first, sums_last = self._parts()
        if self.target.most_memory is not None and self._scratch() > self.target.most_memory:
            raise Unsupported(f"{self._scratch()} bytes of memory, more than {self.target.most_memory}")
        source = "\n".join(
            [
                *self.target.header(self.lanes, len(self.given), len(self.outputs)),
                *self.texts.tables.values(),
                *self.functions,
                *self.target.entry,
                f"    Memory m = {{{', '.join(starts)}}};",
                "    ONCE {",
                *self._constant_lines(),
                "    }",
                *sums_first,
                "    MEET",
                "    STEPS(at, first, last) {",
                "        const Step here(at, first, last, order);",
                *(f"        {c}" for c in calls),
                "    }",
                *sums_last,
                "}",
                *self.target.ending,
            ]
        )
        return Program(source, self._scratch(), self.lanes, self.statements, self.work)

    def _parts(self) -> tuple[list[str], list[str], list[str]]:
        starts, offset = [], 0
        for kind in "FDIB":
            starts.append(f"part<{kind}>(scratch + {offset})")
            offset += self._bytes(kind)
        first, last = [], []
        for k, o in enumerate(self.outputs):
            if o.kind == "sum":
                kind, width = self._sum_kind(o), len(self.values[o.value])
                first.append(f"    const auto sum{k} = part<{kind}>(scratch + {offset});")
                first.append(f"    clear(sum{k}, {width});")
                offset += -(-width * self._size(kind) // 128) * 128
                result = f"(({C_TYPES[self.target.summed_in(self.dtypes[o.value])]}*)results[{k}])"
                if not self.sums[k].outers:
                    last.append(f"    total(sum{k}, {width}, {result});")
                    continue
                if not self.target.sums_outer_products:
                    raise Unsupported("a sum over rows of outer products")
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
        return self.lanes * BYTES[kind]

    def _bytes(self, kind: str) -> int:
        return -(-self.memory.size[kind] * self._size(kind) // 128) * 128

    def _scratch(self) -> int:
        return self._end + 256

    def _constant_lines(self) -> Iterator[str]:
        for (element, kind), place in self.memory.constants.items():
            number = self.texts.same_for_all(np.array([element]), kind)
            yield f"        m.{kind.lower()}[{place}] = {number};"

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
                self.work += moved(count, self.given[i].dtype.itemsize, kind)
                return f"read<{kind}>({base}, {width}, here.row, {first}, {count}, {to});"
            case Gather(i, index, split):
                width = math.prod(d.shape)
                base = f"(const {C_TYPES[self.given[i].dtype]}*)given[{i}]"
                self.work += moved(count, self.given[i].dtype.itemsize, kind)
                pointer = f"m.i[{self.memory.places(index, 'I')[0]}], extent[{i}] * {split}"
                return f"gather<{kind}>({base}, {width}, {pointer}, {first}, {count}, {to});"
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
            terms = Work(6 * len(by_order), BYTES[kind] * len(by_order), weights=6 * BYTES[kind])
            self.work += terms * functions
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
        self.work += multiplied(len(left), terms, width, kind)
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
        self.work += Work(m * n * terms, 2 * m * n * BYTES[kind])
        yield f"add_outer({memory}, {left}, {m}, {right}, {n}, {terms}, packed{name}, outer{name}, here.lanes);"
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
        if o.kind != "sum":
            self.work += moved(width, dtype.itemsize, kind, 2 if o.kind == "add" else 1)
        if o.kind == "sum":
            if width:
                yield f"sum_up(sum{k}, {memory}, {at}, {width}, here);"
            for number in range(len(self.sums[k].outers)):
                yield from self._outer(k, number)
        elif o.kind == "add":
            (index,) = self.memory.places(self.values[o.index], "I").tolist()
            yield f"add<{kind}>({memory}, {at}, {width}, ({c_type}*)results[{k}], numbers[{k}], m.i[{index}], here);"
        else:
            rows = "here.row" if o.kind == "store" else "here.local"
            yield f"write<{kind}>({memory}, {at}, {width}, ({c_type}*)results[{k}], {rows}, here.lanes);"

    # ---- Loops.

    def _loop(self, loop: Loop) -> str:
        everything = LoopWriter(self.texts, self.plan, self.memory, loop).results()
        return " ".join(self._part(loop, everything))

    def _part(self, loop: Loop, results: Sequence[Result]) -> Iterator[str]:
        """Calls of loops with some results of a loop: several if one needs more registers than there are."""
        writer = LoopWriter(self.texts, self.plan, self.memory, loop)
        body = writer.written(results)
        most = self.target.registers
        if most is not None and len(results) > 1 and held(writer.lines) > most:
            half = len(results) // 2
            yield from self._part(loop, results[:half])
            yield from self._part(loop, results[half:])
            return
        name = f"loop{len(self.functions)}"
        self.statements += len(writer.lines)
        self.work += of_statements(writer.lines) * loop.turns
        self.functions.append("\n".join([f"LOOP {name}(PARTS) {{", *body, "}"]))
        yield f"APART {name}(m.f, m.d, m.i, m.b, given);"
