"""Tiny potentials, each of which uses an index space in one way that a compiler may get wrong.

All are in float64 and take their gradients inside. In training mode these can be differentiated again. `ADVERSARIES`
lists them with graphs of three sizes; a program is compiled on the first and must serve the others. Each module has
those of one subject.
"""

from toys import N_SPECIES, envelope, gaussians

from .batches import BATCHES, Batch, BatchCounted, batches, counted_batches
from .forms import FORMS
from .found_within import FOUND_WITHIN, AllWithAll, LineGraphs, PairsAndTriplesWithin, bare, with_dihedrals
from .joined import JOINED, with_bonds
from .masks import MASKS, AtomMasks, EdgeMasks
from .pointers import POINTERS, as_matrices
from .sizes import NUMBERS
from .sums import SUMS, SegmentSoftmax, ToReceivers, few_with_edges
from .toy import Adversary, F, Toy, add_to, plain
from .wholes import WHOLES, of_one_species
from .within_rows import WITHIN_ROWS

ADVERSARIES = SUMS | FOUND_WITHIN | MASKS | POINTERS | JOINED | WHOLES | BATCHES | NUMBERS | WITHIN_ROWS | FORMS

__all__ = [
    "ADVERSARIES",
    "N_SPECIES",
    "Adversary",
    "AllWithAll",
    "AtomMasks",
    "Batch",
    "BatchCounted",
    "EdgeMasks",
    "F",
    "LineGraphs",
    "PairsAndTriplesWithin",
    "SegmentSoftmax",
    "ToReceivers",
    "Toy",
    "add_to",
    "as_matrices",
    "bare",
    "batches",
    "counted_batches",
    "envelope",
    "few_with_edges",
    "gaussians",
    "of_one_species",
    "plain",
    "with_bonds",
    "with_dihedrals",
]
