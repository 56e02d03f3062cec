"""The compiler: one pass a file, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import Program
from .bucket_messages import bucket_messages
from .bundle_all_reduces import bundle_all_reduces
from .choose_owners import choose_owners
from .clean import clean
from .hoist import hoist
from .infer_spaces import infer_spaces
from .insert_all_reduces import insert_all_reduces
from .insert_halos import insert_halos
from .join_parts import join_parts
from .merge_sums import merge_sums
from .narrow_halos import narrow_halos
from .normalize import normalize
from .overlap import overlap
from .place import place
from .reassociate import reassociate
from .share_exchanges import share_exchanges
from .share_gradients import share_gradients
from .sparse_constants import sparse_constants
from .thin_messages import thin_messages
from .tile import tile

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
    share_gradients,
)

__all__ = ["PIPELINE"]
