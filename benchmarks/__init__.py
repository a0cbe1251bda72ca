"""Benchmarks: `python -m benchmarks.stores` and `python -m benchmarks.tree`."""
