"""Code that Inductor, torch's own generator, writes for bodies of regions."""
