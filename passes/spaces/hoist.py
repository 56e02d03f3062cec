"""Split the graph into the index program and the tensor program.

    edge_index ── select ── [sender]  ┐ index program: runs once on the whole graph object,
    batch ─────── index ─── [heads]   ┘ its results are cut into rows and renumbered for each rank
    positions, sender, heads ── ... ── energy, forces     tensor program: runs on every rank

Row numbers, species, masks and counts depend on integers only (rarely on a distance cut). Computing them before
the ranks part makes every pointer an *input* of the tensor program, whatever the model did to build it, and keeps
counts that are used as numbers (energy per atom) global. Views and broadcasts of such values stay in the tensor
program, so that what is stored per rank is one integer per row.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.symbol import SymT, symbol_is_type

from ...errors import CaptureError
from ...ir import Input, Normal, Output, Split, grown
from ...ir.graphs import anchor, copy_graph, graph_module
from ...ir.operators import facts
from ...ir.sizes import as_traced, size_nodes
from ...ir.user_code import user_line
from ...ir.writer import described, write
from ...rules.indexing import index_operands, makes_a_matrix
from .flat_lists import as_matrix, matrices

aten = torch.ops.aten


def hoist(program: Normal) -> Split:
    """Return `program` split in two."""
    source, _ = copy_graph(program.graph)
    (output,) = [n for n in source.graph.nodes if n.op == "output"]
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    n_conditions = len(program.captured.conditions)
    conditions = results[len(results) - n_conditions :]
    hoisted = _hoisted(source.graph, conditions)
    builder = _Builder(program, source, hoisted)
    for node in source.graph.nodes:
        if node.op == "call_function" and node not in hoisted:
            builder.copy(node)
    return builder.finish(results[: len(results) - n_conditions], conditions)


def _hoisted(graph: fx.Graph, conditions: list[fx.Node]) -> set[fx.Node]:
    """The nodes that belong to the index program."""
    hoisted: set[fx.Node] = {n for n in graph.nodes if n.op == "placeholder"}
    before = -1
    while len(hoisted) > before:
        before = len(hoisted)
        for node in graph.nodes:
            if node.target is operator.getitem and node.args[0] in hoisted and _data_dependent(node.args[0]):
                hoisted.add(node)
            elif node.op == "call_function" and (facts(node).progression is not None or _is_integral(node)):
                symbolic = _is_symbolic(node)
                if all(_is_known(n, hoisted, symbolic) for n in node.all_input_nodes):
                    hoisted.add(node)
        # Operands of an index are needed before the ranks part, even if they are computed from positions.
        wanted = [i for n in graph.nodes if n not in hoisted for i in (*index_operands(n), *_data_dependent(n))]
        wanted += conditions
        while wanted:
            node = wanted.pop()
            if node not in hoisted and node.op == "call_function":
                hoisted.add(node)
                wanted.extend(node.all_input_nodes)
    return hoisted


def _is_known(node: fx.Node, hoisted: set[fx.Node], for_size: bool) -> bool:
    """True if the index program holds an operand: integers, or any tensor if only its size is needed."""
    if node.op == "get_attr":
        return _is_integral(node)
    return node in hoisted and (for_size or _is_integral(node))


def _data_dependent(node: fx.Node) -> list[fx.Node]:
    """The node itself if the shape or value of its result depends on the values of its operands."""
    if node.target is aten.index.Tensor:
        return []  # only with a boolean mask, which its rule refuses
    return [node] if facts(node).data_dependent else []


def _is_symbolic(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def _is_integral(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target), None)
    values = value if isinstance(value, list | tuple) else [value]
    return all(
        isinstance(v, torch.SymInt | torch.SymFloat | torch.SymBool | int)
        or (isinstance(v, torch.Tensor) and not v.dtype.is_floating_point and not v.dtype.is_complex)
        for v in values
    )


class _Builder:
    """Builds the tensor program and collects what it takes from the index program."""

    def __init__(self, program: Normal, source: fx.GraphModule, hoisted: set[fx.Node]) -> None:
        self.program, self.hoisted = program, hoisted
        self.source = source
        self.graph = fx.Graph()
        self.anchor = self.graph.create_node("call_function", anchor)  # placeholders go before it
        self.new: dict[fx.Node, fx.Node] = {}
        self.sizes: dict[sympy.Expr, fx.Node] = {}
        self.inputs: list[Input] = []
        self.taken: list[fx.Node] = []  # outputs of the index program
        paths = [leaf.path for leaf in program.captured.leaves]
        self.labels = dict(zip([n for n in source.graph.nodes if n.op == "placeholder"], paths, strict=True))
        self.constant = _constants(source.graph)
        self.matrices = matrices(program, [n for n in source.graph.nodes if n in hoisted])

    def take(self, node: fx.Node) -> int:
        """Make `node` an output of the index program; return its position."""
        if node not in self.taken:
            self.taken.append(node)
        return self.taken.index(node)

    def label(self, node: fx.Node) -> str:
        """The user's name of `node`: that of the input that it is, or is computed from."""
        while node not in self.labels:
            tensors = [n for n in node.all_input_nodes if n in self.hoisted and not _is_symbolic(n)]
            if not tensors:
                return node.name
            node = tensors[0]
        return self.labels[node]

    def placeholder(self, name: str, kind: Any, value: Any, **fields: Any) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            node = self.graph.placeholder(name)
        node.target = node.name  # the name of the argument, made unique
        described(node, value=value)
        self.inputs.append(Input(node.name, kind, **fields))
        return node

    def value(self, node: fx.Node) -> fx.Node:
        """The node of the tensor program that holds `node`."""
        if node in self.new:
            return self.new[node]
        if node in self.constant or (node.op == "call_function" and self.is_cheap(node)):
            return self.copy(node)
        if node.op == "get_attr":
            self.new[node] = self.graph.node_copy(node)
        elif (matrix := as_matrix(self.program, node, self.matrices)) is not None:
            self.hoisted |= {matrix, *matrix.all_input_nodes}
            sizes = [self.size(n, node) for n in node.meta["val"].shape]
            self.new[node] = write(self.graph, aten.reshape.default, (self.given(matrix), sizes), like=node)
        else:
            self.new[node] = self.given(node)
        return self.new[node]

    def given(self, node: fx.Node) -> fx.Node:
        """The input that holds `node` of the index program."""
        name = self.label(node).replace("'", "").strip("[]").split(".")[-1].split("[")[-1] or node.name
        return self.placeholder(
            _identifier(name), "rows", node.meta["val"], source=self.take(node), label=self.label(node)
        )

    def is_cheap(self, node: fx.Node) -> bool:
        """True if each rank computes a node of the index program itself instead of being given its rows.

        This holds for views and broadcasts, so that less is stored. It also holds for real numbers that decided about
        indices (distances), since gradients need them to be computed from the inputs.
        """
        source = node.args[0] if node.target is operator.getitem else node
        if makes_a_matrix(node):
            return False
        return facts(node).shows_all or (not _is_integral(node) and not _data_dependent(source))  # type: ignore[arg-type]

    def number(self, node: fx.Node) -> fx.Node:
        """A size or other symbolic number used as a number: the global one."""
        if node not in self.new:
            self.new[node] = self.placeholder("number", "number", node.meta["val"], source=self.take(node))
        return self.new[node]

    def size(self, value: Any, user: fx.Node) -> Any:
        """A symbolic size used in a shape by `user`: the rank's own, computed from the sizes of the spaces."""
        expr = self.program.size(value)
        if expr.is_Integer:
            return int(expr)
        if expr not in self.sizes:
            if expr.is_Symbol:
                self.sizes[expr] = self.placeholder(f"n_{expr}", "size", value)
                self.witness(expr)
            else:
                made = size_nodes(self.graph, expr, self.symbol_value)
                if made is None:
                    raise CaptureError(
                        f"{user.target} makes a tensor of {expr} rows, which is no number of rows of a part of the "
                        f"graph.\n  {user_line(user)}\n"
                        "Sizes may be sums, products and integer quotients of sizes of the graph's tensors."
                    )
                made.meta["val"] = value
                self.sizes[expr] = made
        return self.sizes[expr]

    def symbol_value(self, symbol: sympy.Symbol) -> fx.Node:
        if symbol not in self.sizes:
            shape_env = self.program.captured.shape_env
            value = shape_env.create_symintnode(symbol, hint=None)
            self.sizes[symbol] = self.placeholder(f"n_{symbol}", "size", value)
            self.witness(symbol)
        return self.sizes[symbol]

    def copy(self, node: fx.Node) -> fx.Node:
        """Copy one operator into the tensor program."""
        if node in self.new:
            return self.new[node]
        schema = getattr(node.target, "_schema", None)
        args = [self.argument(a, _is_shape(schema, i), node) for i, a in enumerate(node.args)]
        kwargs = {k: self.argument(a, _is_shape(schema, k), node) for k, a in node.kwargs.items()}
        new = self.graph.create_node(node.op, node.target, tuple(args), kwargs, node.name)
        new.meta = dict(node.meta)
        self.new[node] = new
        return new

    def argument(self, value: Any, shape: bool, user: fx.Node) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.argument(v, shape, user) for v in value)
        if not isinstance(value, fx.Node):
            return value
        if _is_symbolic(value):
            if not isinstance(value.meta["val"], torch.SymInt):
                return self.number(value)
            return self.size(value.meta["val"], user) if shape else self.number(value)
        return self.value(value)

    def finish(self, wanted: list[Any], conditions: list[fx.Node]) -> Split:
        results: list[fx.Node] = []
        outputs: list[Output] = []
        for node in wanted:
            if not isinstance(node, fx.Node):
                raise AssertionError("make_fx returns a node for every output")
            if node in self.hoisted and (node.op == "placeholder" or _is_integral(node)):
                outputs.append(Output("index", self.take(node)))
            else:
                outputs.append(Output("graph", len(results)))
                results.append(self.value(node))
        asked = {symbol for check in self.program.captured.checks for symbol in check.free_symbols}
        for symbol in sorted(asked, key=str):
            if symbol_is_type(symbol, SymT.UNBACKED_INT):
                self.witness(symbol)
        positions = [self.take(node) for node in conditions]
        self.graph.output(tuple(results))
        self.graph.erase_node(self.anchor)
        module = graph_module(self.source, self.graph)
        module.graph.eliminate_dead_code()
        return grown(
            self.program,
            Split,
            graph=module,
            index_program=self.index_program(),
            inputs=tuple(self.inputs),
            outputs=tuple(outputs),
            conditions=tuple(zip(self.program.captured.conditions, positions, strict=True)),
        )

    def witness(self, symbol: sympy.Symbol) -> None:
        """Let the index program return a tensor of size `symbol`, unless an input has that size."""
        if any(symbol in sizes for sizes in self.program.captured.sizes):
            return
        for node in self.source.graph.nodes:
            value = node.meta.get("val")
            if node in self.hoisted and isinstance(value, torch.Tensor) and symbol in map(as_traced, value.shape):
                self.take(node)
                return

    def index_program(self) -> fx.GraphModule:
        module, nodes = copy_graph(self.source)
        (output,) = [n for n in module.graph.nodes if n.op == "output"]
        output.args = (tuple(nodes[n] for n in self.taken),)
        module.graph.eliminate_dead_code()
        return module


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Operators that depend on no input and on no size."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and all(n in constant or n.op == "get_attr" for n in node.all_input_nodes):
            constant.add(node)
    return constant


def _is_shape(schema: Any, argument: int | str) -> bool:
    """True if an operator's argument is a size or position, not a number to compute with."""
    if schema is None:
        return True
    arguments = schema.arguments
    found = arguments[argument] if isinstance(argument, int) else next(a for a in arguments if a.name == argument)
    return "int" in str(found.real_type).lower()


def _identifier(name: str) -> str:
    clean = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return clean if clean and not clean[0].isdigit() else f"input_{clean}"
