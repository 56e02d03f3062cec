"""The compiler: one pass a file, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import Program
from .halos.bundle_all_reduces import bundle_all_reduces
from .halos.insert_all_reduces import insert_all_reduces
from .halos.insert_halos import insert_halos
from .halos.merge_sums import merge_sums
from .halos.narrow_halos import narrow_halos
from .halos.share_exchanges import share_exchanges
from .halos.thin_messages import thin_messages
from .normalize.normalize import normalize
from .schedule.bucket_messages import bucket_messages
from .schedule.overlap import overlap
from .schedule.tile import tile
from .simplify.clean import clean
from .simplify.join_parts import join_parts
from .simplify.reassociate import reassociate
from .simplify.sparse_constants import sparse_constants
from .spaces.choose_owners import choose_owners
from .spaces.hoist import hoist
from .spaces.infer_spaces import infer_spaces
from .spaces.place import place

PIPELINE: tuple[Callable[[Program], Program], ...] = (
    normalize,
    clean,
    join_parts,
    sparse_constants,
    reassociate,
    hoist,
    infer_spaces,
    choose_owners,
    place,
    merge_sums,
    insert_halos,
    insert_all_reduces,
    bundle_all_reduces,
    share_exchanges,
    narrow_halos,
    thin_messages,
    tile,
    overlap,
    bucket_messages,
)

__all__ = ["PIPELINE"]
