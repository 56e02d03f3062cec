"""Facts about operators: one table, one row an operator.

    aten.mul.Tensor          pointwise, linear in either operand while the other is fixed
    aten.select.int          a view, whose elements are elements of its operand
    aten.index_add.default   adds rows: table, dimension, index and source are operands 0, 1, 2 and 3

`Facts` says what the columns are. All of them are properties of an operator by itself: what a pass makes of an operator
(a pattern that it rewrites) stands in that pass, and how its result is divided is a rule in ``rules``.

To add an operator of torch, write a row into `_ROWS`; one of distcompile's own calls `register` where it is defined.
A row may say less than is true, never more: what it does not say costs messages or memory, what it says wrongly costs
results. An operator without a row has the facts that torch's tags tell, and else the careful ones.
``tests/ir/test_operators.py`` runs every operator of the table and compares it with its row; it makes operands by the
operator's schema, and has a list of those that the schema does not tell. An operator that is not pointwise also needs a
rule (see ``rules/base.py``), if none takes its operators from a column that the new row fills in.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import fx

from .placements import Reduction

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Argument:
    """A number that an operator is given as one of its arguments."""

    position: int
    default: int | None = None

    def of(self, node: fx.Node) -> Any:
        """The number that a call is given."""
        return node.args[self.position] if len(node.args) > self.position else self.default


@dataclasses.dataclass(frozen=True)
class Linear:
    """The operands that an operator is linear in."""

    operands: tuple[int, ...] = (0,)
    """Positions of operands, tensors or lists of them: it is linear in each one while all others are fixed."""
    together: bool = False
    """Linear in all of the operands at once instead, as a sum is: f(a, b) + f(c, d) = f(a + c, b + d)."""
    or_zero: bool = False
    """Operands that are taken together may include zeros that are made as such: zeros are linear in anything."""
    in_reals: bool = False
    """Only if the result is of real numbers: a cast to integers rounds."""


@dataclasses.dataclass(frozen=True)
class RowAccess:
    """The rows of a table that an operator reads, or adds to, by an index. Numbers are positions of operands."""

    kind: Literal["gather", "scatter"]
    index: int
    dim: int | None
    """The dimension of the table that the index runs over; None for the first one."""
    source: int | None = None
    """The values that a scatter adds."""
    by_element: bool = False
    """The index has one entry for each element; the other dimensions of index and table run in step."""
    several: bool = False
    """`index` is a list, of an index or None for each dimension; those given are taken together."""
    reduction: int | None = None
    """The name of the operation that combines values in one row of a scatter; it adds them if None."""
    table: int = 0


@dataclasses.dataclass(frozen=True)
class Progression:
    """A list of evenly spaced numbers, made of nothing but numbers."""

    start: int | Argument
    step: int | Argument | None
    """None if the last number and the count are given instead."""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A collective operator. Numbers are positions of operands."""

    to: Literal["readers", "owners", "all", "own", "sum"]
    """The receivers, and the data that they get. readers: ranks get the rows that they read. owners: they get the
    values that others add to their rows. all: every rank gets all rows. own: every rank gets the rows that it owns of a
    sum of all rows. sum: every rank gets the sum of all values."""
    dim: int | None = None
    """The dimension that counts rows."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about an operator. The defaults are the careful answers."""

    view: bool = False
    """Its result shows memory of its first operand."""
    in_place: bool = False
    """It writes into its first operand, and its result shows memory of it."""
    reshape: bool = False
    """The elements of its first operand in row-major order, in another shape; a copy if need be."""
    moves: bool = False
    """Elements of its operands, at places that do not depend on their values."""
    shows_all: bool = False
    """No element of its operand is left out, and nothing is added: a pointer seen through it is that pointer."""
    identity: bool = False
    """Its first operand once more; only memory, layout and gradients may differ."""
    same_values: bool = False
    """The values of its first operand at the same places, perhaps in another type."""
    pointwise: bool = False
    """Each element depends on elements of operands at the same place, once they are broadcast. Torch tags most."""
    linear: Linear | None = None
    """The operands in which it is linear; None if there are none."""
    rows: RowAccess | None = None
    """The rows that it reads or adds to."""
    reduces: Reduction | None = None
    """The reduction that makes one element of many. Operand 1 has the dimensions (all if none are given), operand 2
    says if they are kept."""
    product: int | None = None
    """For a matrix product, the position of the factor whose last dimension counts the terms that are added up."""
    right_hand_side: int | None = None
    """For a solver of equations, the position of the right-hand sides. Each column of them is solved for by itself."""
    fill: int | Argument | None = None
    """It makes a tensor of this one value, whatever the values of its operands."""
    progression: Progression | None = None
    """The numbers that it makes a list of."""
    compares: bool = False
    """It compares its operands to the last bit."""
    random: bool = False
    """It draws random numbers: run again, or in another order, it gives others. Torch tags such operators."""
    data_dependent: bool = False
    """Its result's shape depends on values of operands, or is a number that does. Torch tags such operators."""
    crosses: Crossing | None = None
    """The data that ranks send each other by it."""
    puts_beside: int | None = None
    """It puts halo rows beside the owned rows, which are its first operand. This operand is the number of halo rows,
    and the next one the dimension."""

    @property
    def free(self) -> bool:
        """True if it takes no time: its result is there already, or is the same everywhere."""
        return self.view or self.reshape or self.fill is not None

    @property
    def shares_memory(self) -> bool:
        """True if its result stands in the memory of its first operand."""
        return self.view or self.in_place

    @property
    def finds_extremes(self) -> bool:
        """True if it reduces to the largest or the smallest element."""
        return self.reduces in ("amax", "amin")


_FIRST = Linear()
_TOGETHER = Linear((0, 1), together=True)
_EACH = Linear((0, 1))

_VIEW = Facts(view=True, linear=_FIRST)
_MOVED_VIEW = Facts(view=True, moves=True, linear=_FIRST)
_WHOLE_VIEW = Facts(view=True, moves=True, shows_all=True, linear=_FIRST)
_RESHAPE = Facts(reshape=True, moves=True, shows_all=True, linear=_FIRST)
_POINTWISE = Facts(pointwise=True)
_LINEAR = Facts(linear=_FIRST)
_MOVES = Facts(moves=True)
_IDENTITY = Facts(identity=True, same_values=True)
_JOIN = Facts(moves=True, linear=Linear(together=True))

_ROWS: dict[Any, Facts] = {
    # Views.
    **dict.fromkeys((aten.expand.default, aten.unsqueeze.default, aten.permute.default, aten.t.default), _WHOLE_VIEW),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.transpose.int), _MOVED_VIEW),
    **dict.fromkeys((aten.select.int, aten.slice.Tensor, aten.unbind.int, operator.getitem), _MOVED_VIEW),
    **dict.fromkeys((aten.split_with_sizes.default, aten.split.Tensor, aten.diagonal.default), _VIEW),
    aten.view_as_real.default: _VIEW,
    **dict.fromkeys((aten.reshape.default, aten.view.default, aten._unsafe_view.default), _RESHAPE),
    # The operand itself.
    **dict.fromkeys((aten.detach.default, aten.alias.default, aten.clone.default, aten.contiguous.default), _IDENTITY),
    aten.lift_fresh_copy.default: dataclasses.replace(_IDENTITY, moves=True, pointwise=True),
    aten._to_copy.default: Facts(same_values=True, moves=True, pointwise=True, linear=Linear(in_reals=True)),
    # Elements moved about, joined, and parts put back into zeros.
    **dict.fromkeys((aten.repeat.default, aten.flip.default, aten.roll.default), _MOVES),
    **dict.fromkeys((aten.cat.default, aten.stack.default), _JOIN),
    **dict.fromkeys((aten.select_backward.default, aten.slice_backward.default), _LINEAR),
    aten.diagonal_backward.default: _LINEAR,
    # Element by element, and tagged so by torch.
    aten.neg.default: _LINEAR,
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), Facts(linear=_TOGETHER)),
    aten.mul.Tensor: Facts(linear=_EACH),
    **dict.fromkeys((aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar), _LINEAR),
    aten.where.self: Facts(linear=Linear((1, 2), together=True, or_zero=True)),
    **dict.fromkeys((aten.eq.Tensor, aten.ne.Tensor), Facts(compares=True)),
    # Element by element, and not tagged so.
    **dict.fromkeys((aten.fill.Scalar, aten.fill.Tensor, aten.copy.default, aten.complex.default), _POINTWISE),
    **dict.fromkeys((aten.empty_like.default, aten.rand_like.default, aten.randn_like.default), _POINTWISE),
    **dict.fromkeys((aten.native_dropout.default, aten.special_ndtr.default, aten.hardswish.default), _POINTWISE),
    **dict.fromkeys((aten.elu_backward.default, aten.hardsigmoid_backward.default), _POINTWISE),
    **dict.fromkeys((aten.hardswish_backward.default, aten.hardtanh_backward.default), _POINTWISE),
    **dict.fromkeys((aten.leaky_relu_backward.default, aten.mish_backward.default), _POINTWISE),
    aten.softplus_backward.default: _POINTWISE,
    # New tensors.
    aten.zeros_like.default: Facts(fill=0, pointwise=True),
    aten.ones_like.default: Facts(fill=1, pointwise=True),
    aten.full_like.default: Facts(fill=Argument(1), pointwise=True),
    **dict.fromkeys((aten.zeros.default, aten.new_zeros.default), Facts(fill=0)),
    **dict.fromkeys((aten.ones.default, aten.new_ones.default), Facts(fill=1)),
    aten.full.default: Facts(fill=Argument(1)),
    aten.new_full.default: Facts(fill=Argument(2)),
    aten.arange.default: Facts(progression=Progression(start=0, step=1)),
    aten.arange.start: Facts(progression=Progression(start=Argument(0), step=1)),
    aten.arange.start_step: Facts(progression=Progression(start=Argument(0), step=Argument(2, default=1))),
    aten.linspace.default: Facts(progression=Progression(start=Argument(0), step=None)),
    # Rows read where an index says.
    aten.index_select.default: Facts(rows=RowAccess("gather", dim=1, index=2)),
    aten.embedding.default: Facts(rows=RowAccess("gather", dim=None, index=1)),
    aten.gather.default: Facts(rows=RowAccess("gather", dim=1, index=2, by_element=True)),
    aten.index.Tensor: Facts(rows=RowAccess("gather", dim=None, index=1, several=True)),
    # Rows added to where an index says.
    aten.index_add.default: Facts(rows=RowAccess("scatter", dim=1, index=2, source=3)),
    aten.scatter_add.default: Facts(rows=RowAccess("scatter", dim=1, index=2, source=3, by_element=True)),
    aten.scatter_reduce.two: Facts(rows=RowAccess("scatter", dim=1, index=2, source=3, by_element=True, reduction=4)),
    aten.index_put.default: Facts(rows=RowAccess("scatter", dim=None, index=1, source=2, several=True)),
    # Products and reductions.
    **dict.fromkeys((aten.mm.default, aten.bmm.default), Facts(product=0, linear=_EACH)),
    **dict.fromkeys((aten.addmm.default, aten.baddbmm.default), Facts(product=1)),
    **dict.fromkeys((aten.mv.default, aten.dot.default), Facts(linear=_EACH)),
    **dict.fromkeys((aten.sum.default, aten.sum.dim_IntList), Facts(reduces="sum", linear=_FIRST)),
    **dict.fromkeys((aten.amax.default, aten.max.default), Facts(reduces="amax")),
    **dict.fromkeys((aten.amin.default, aten.min.default), Facts(reduces="amin")),
    # Equations.
    aten._linalg_solve_ex.default: Facts(right_hand_side=1),
    aten.linalg_lu_solve.default: Facts(right_hand_side=2),
    aten.linalg_solve_triangular.default: Facts(right_hand_side=1),
}

OPERATORS: dict[Any, Facts] = {}
"""The table: the rows above, and those of distcompile's own operators."""


def register(target: Any, row: Facts) -> None:
    """Write the row of an operator, completed by torch's tags."""
    assert target not in OPERATORS, f"two rows for {target}"
    tagged = _by_tags(target)
    OPERATORS[target] = dataclasses.replace(
        row,
        pointwise=row.pointwise or tagged.pointwise,
        random=row.random or tagged.random,
        data_dependent=row.data_dependent or tagged.data_dependent,
    )


@functools.cache
def _by_tags(target: Any) -> Facts:
    """The facts that torch's tags tell of an operator."""
    tags = getattr(target, "tags", ())
    return Facts(
        pointwise=torch.Tag.pointwise in tags,
        random=torch.Tag.nondeterministic_seeded in tags,
        data_dependent=torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags,
    )


for _target, _row in _ROWS.items():
    register(_target, _row)


def facts_of(target: Any) -> Facts:
    """The row of an operator; the facts of its tags if it has none."""
    return OPERATORS[target] if target in OPERATORS else _by_tags(target)


_NOTHING = Facts()


def facts(node: fx.Node) -> Facts:
    """The row of the operator that a node calls; the careful defaults for other nodes."""
    return facts_of(node.target) if node.op == "call_function" else _NOTHING


def operators(having: Callable[[Facts], Any]) -> tuple[Any, ...]:
    """The operators whose row meets a condition."""
    return tuple(target for target, row in OPERATORS.items() if having(row))


def is_random(node: fx.Node) -> bool:
    """True if an operator draws random numbers."""
    return facts(node).random


def filled_with(node: fx.Node) -> Any:
    """The one value that a node fills a tensor with; None for other nodes."""
    value = facts(node).fill
    return value.of(node) if isinstance(value, Argument) else value


def pointer_root(index: fx.Node) -> fx.Node | None:
    """The input that an index is a view of; None for constants."""
    while index.op == "call_function" and facts(index).shows_all:
        index = index.args[0]  # type: ignore[assignment]
    return index if index.op == "placeholder" else None


def is_zero(node: fx.Node) -> bool:
    """True if a node is a tensor of zeros by construction."""
    return bool(filled_with(node) == 0)


def row_numbers(node: fx.Node) -> tuple[Any, Any] | None:
    """The first number and the step of a node that counts rows; None for other nodes."""
    found = facts(node).progression
    if found is None or found.step is None:
        return None
    start, step = (n.of(node) if isinstance(n, Argument) else n for n in (found.start, found.step))
    return start, step
