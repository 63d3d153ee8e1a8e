"""Measurements, run by hand (`make bench`); their figures stand in docs/benchmarks.md. Nothing here asserts a time."""
