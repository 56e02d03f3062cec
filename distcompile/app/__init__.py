"""The command line: `cli` has its commands, `jobs` does them on every rank."""
