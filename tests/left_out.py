"""Models compiled without some passes: those that a program is right without."""

from __future__ import annotations

from typing import Any

from torch import nn

from distcompile import DistributedModel, LocalWorld
from distcompile.api import compiled_for
from distcompile.model import Settings
from distcompile.passes.halos.bundle_all_reduces import bundle_all_reduces
from distcompile.passes.halos.merge_sums import merge_sums
from distcompile.passes.halos.narrow_halos import narrow_halos
from distcompile.passes.halos.share_exchanges import share_exchanges
from distcompile.passes.halos.thin_messages import thin_messages
from distcompile.passes.schedule.bucket_messages import bucket_messages
from distcompile.passes.schedule.overlap import overlap
from distcompile.passes.simplify.join_parts import join_parts
from distcompile.passes.simplify.reassociate import reassociate
from distcompile.passes.simplify.sparse_constants import sparse_constants
from distcompile.passes.spaces.once_per_kind import once_per_kind

OPTIONAL = (
    join_parts, sparse_constants, reassociate, once_per_kind, merge_sums, bundle_all_reduces, share_exchanges,
    narrow_halos, thin_messages, overlap, bucket_messages,
)  # fmt: skip


def compiled(
    model: nn.Module, graph: Any, *without: Any, model_kwargs: dict[str, Any] | None = None, **options: Any
) -> DistributedModel:
    """A model compiled for one rank, without some passes."""
    settings = Settings(LocalWorld(1), without=tuple(p.__name__ for p in without), **options)
    return compiled_for(model, graph, settings, model_kwargs)[0]
