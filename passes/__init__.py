"""The compiler: stages in the order in which they run, each of passes in the order in which they run.

    Captured
    ── normalize, simplify ──▶  Normal        one way to say a thing, and less to compute
    ── spaces ──────────────▶  Placed        which dimension counts rows of what, and who owns them
    ── halos ───────────────▶  Distributed   right on any number of ranks
    ── schedule ────────────▶  Tiled         in an order to run
    ── lower ───────────────▶  Runnable      as it runs

`pipeline` has the stages and runs them. A pass is one file, and a function from program to program. A stage says what
holds of the program after it (`spec`).
"""

from __future__ import annotations

from .lower.lower import Lowering
from .pipeline import NAMES, STAGES, Pass, Stage, lowering, name_of, run, scheduling, simplifying

__all__ = ["NAMES", "STAGES", "Lowering", "Pass", "Stage", "lowering", "name_of", "run", "scheduling", "simplifying"]
