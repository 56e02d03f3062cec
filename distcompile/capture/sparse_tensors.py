"""Sparse matrices within a model: torch follows no products with them, so their entries are multiplied and summed.

a = sparse_coo_tensor([i, j], v, (n, m))     =>  a stand-in that holds i, j and v
a @ x, sparse.mm(a, x)                       =>  index_add(zeros(n), 0, i, v[:, None] * x[j])

Also of matrices that a model holds as constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ..errors import CaptureError
from ..runtime.operators.python_calls import outside_of_tracing

_PRODUCTS = (torch.sparse.mm, torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__, torch.mv, Tensor.mv)
_LAYOUTS = (torch.sparse_coo, torch.sparse_csr)


@dataclasses.dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix as a list of its entries. Several entries for one place are added up."""

    rows: Tensor
    columns: Tensor
    entries: Tensor
    """Shape: [n_entries]."""
    shape: tuple[Any, Any]

    is_sparse = True
    layout = torch.sparse_coo

    @property
    def dtype(self) -> torch.dtype:
        return self.entries.dtype

    @property
    def device(self) -> torch.device:
        return self.entries.device

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def coalesce(self) -> Sparse:
        return self

    def t(self) -> Sparse:
        return Sparse(self.columns, self.rows, self.entries, self.shape[::-1])

    def to_dense(self) -> Tensor:
        zeros = self.entries.new_zeros(self.shape)
        return zeros.index_put((self.rows, self.columns), self.entries, accumulate=True)

    def __matmul__(self, dense: Tensor) -> Tensor:
        return product(self, dense)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _PRODUCTS and isinstance(args[0], Sparse) and isinstance(args[1], Tensor):
            return product(*args)
        name = getattr(function, "__name__", str(function))
        raise CaptureError(
            f"The model uses {name} on a sparse tensor, which cannot be captured. Products with dense matrices "
            "(torch.sparse.mm, @) can; otherwise keep indices and values, and use index_add."
        )


def product(matrix: Sparse, dense: Tensor) -> Tensor:
    """The product of a sparse matrix with a dense one, or with a vector."""
    weights = matrix.entries.reshape(-1, *[1] * (dense.dim() - 1))
    zeros = dense.new_zeros(matrix.shape[0], *dense.shape[1:])
    return zeros.index_add(0, matrix.rows, weights * dense[matrix.columns])


def written_out(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """A replacement of a call that makes a sparse matrix or multiplies by a constant one; None for other calls."""
    if function is torch.sparse_coo_tensor:
        return lambda: _made(*args, **kwargs) or function(*args, **kwargs)
    if function in _PRODUCTS and isinstance(args[0], Tensor) and args[0].layout in _LAYOUTS:
        return (lambda: product(_of_constant(args[0]), args[1])) if not isinstance(args[0], FakeTensor) else None
    return None


def _made(indices: Any, values: Any, size: Any = None, **options: Any) -> Sparse | None:
    """A stand-in for a matrix of given size whose entries are numbers."""
    if size is None or len(size) != 2 or not (isinstance(indices, Tensor) and isinstance(values, Tensor)):
        return None
    entries = values.to(options["dtype"]) if options.get("dtype") is not None else values
    return Sparse(indices[0].long(), indices[1].long(), entries, (size[0], size[1])) if values.dim() == 1 else None


def _of_constant(matrix: Tensor) -> Sparse:
    with outside_of_tracing():
        given = matrix.detach().to_sparse_coo().coalesce()
        (rows, columns), entries = given.indices().clone(), given.values().clone()
    return Sparse(rows, columns, entries, (matrix.shape[0], matrix.shape[1]))
