"""Models compiled without some passes: those that a program is right without."""

from __future__ import annotations

from typing import Any
from unittest import mock

from torch import nn

import distcompile
from distcompile import DistributedModel, LocalWorld, api
from distcompile.passes.bucket_messages import bucket_messages
from distcompile.passes.bundle_all_reduces import bundle_all_reduces
from distcompile.passes.join_parts import join_parts
from distcompile.passes.merge_sums import merge_sums
from distcompile.passes.narrow_halos import narrow_halos
from distcompile.passes.overlap import overlap
from distcompile.passes.reassociate import reassociate
from distcompile.passes.share_exchanges import share_exchanges
from distcompile.passes.sparse_constants import sparse_constants
from distcompile.passes.thin_messages import thin_messages

OPTIONAL = (
    join_parts, sparse_constants, reassociate, merge_sums, bundle_all_reduces, share_exchanges, narrow_halos,
    thin_messages, overlap, bucket_messages,
)  # fmt: skip


def compiled(model: nn.Module, graph: Any, *without: Any, **options: Any) -> DistributedModel:
    """A model compiled for one rank, without some passes."""
    pipeline = tuple(p for p in api.PIPELINE if p not in without)
    assert len(pipeline) == len(api.PIPELINE) - len(without)
    with mock.patch.object(api, "PIPELINE", pipeline):
        return distcompile.compile(model, graph, world=LocalWorld(1), validate=False, **options)
