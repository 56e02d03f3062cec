"""The ranks of a `world` run a rewritten program here.

Of the compiler, this folder knows only the vocabulary of `ir`.
"""
