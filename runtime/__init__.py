"""The ranks of a `world` run a rewritten program here; nothing of the compiler is known but the vocabulary of `ir`."""
