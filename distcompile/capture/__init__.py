"""A model's call becomes one graph of ATen operators: `trace` follows it, the rest sees to what tracing misses."""
