"""ASE calculators that hold models: the methods through which they call them, and the switch to compiled ones."""
