"""Operators that are written out in simpler ones while a call is traced, by torch's own tables.

    log_sigmoid, prelu, glu, huber_loss          =>  where, mul, exp, ...
    native_batch_norm with known statistics      =>  sub, mul, add

Operators of common layers that have no placement rule of their own. Those with a rule stay whole: fewer operators are
faster to run one by one, and Inductor writes them out itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten

_ACTIVATIONS: list[Any] = [
    aten._prelu_kernel,
    aten._prelu_kernel_backward,
    aten.glu,
    aten.glu_backward,
    aten.log_sigmoid_backward,
    aten.log_sigmoid_forward,
]
_NORMS: list[Any] = [
    aten._native_batch_norm_legit,  # of torch 2.12
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.norm.ScalarOpt_dim,
]
_LOSSES: list[Any] = [
    aten.huber_loss,
    aten.huber_loss_backward,
    aten.mse_loss,
    aten.mse_loss_backward,
    aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward,
]
_OTHERS: list[Any] = [aten._safe_softmax, aten.addr, aten.index_copy, aten.index_fill, aten.trace]

TABLE: dict[Any, Any] = get_decompositions([*_ACTIVATIONS, *_NORMS, *_LOSSES, *_OTHERS])
"""The decomposition of each of them."""
