"""Names of models, in the only place of the package that has any."""

ALIASES = {
    "chgnet": "chgnet.model.dynamics:CHGNetCalculator",
    "sevennet": "sevenn.calculator:SevenNetCalculator",
    "mace-mp": "mace.calculators:mace_mp",
}
"""Short names on the command line for calculators that their packages provide. Nothing else depends on them."""

PACKAGES = {
    "chgnet": "chgnet.model.dynamics",
    "mace-torch": "mace.calculators",
    "matgl": "matgl.ext.ase",
    "sevenn": "sevenn.calculator",
    "nequip": "nequip.ase",
    "nequip-allegro": "allegro.model",
    "fairchem-core": "fairchem.core",
}
"""Packages of models, and the module that is imported from each to see if it works. Nothing else depends on them."""
