"""Communication: inserted where a pointer or a sum leaves the rank, then made less."""
