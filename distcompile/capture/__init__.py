"""A model's call becomes one graph of ATen operators: `trace` follows it, the other files mend what tracing misses."""
