"""The order of work: blocks of rows, values that are stored between them, messages that travel meanwhile."""
