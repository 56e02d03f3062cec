"""What a package's graph object is made of, learned from examples: ranks then make their rows of it themselves.

    structure ──neighbours──> part (atoms, edges, bonds, angles of some atoms) ──recipes──> the graph object's tensors

A recipe says how a tensor comes out of a part: positions, a table of the species, images of neighbours, the other of
two mirrored edges. Recipes are fitted to what the package made of a few structures, and are tested on others.
"""
