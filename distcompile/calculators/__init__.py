"""ASE calculators that hold models: where they enter them, and how they are switched to compiled ones."""
