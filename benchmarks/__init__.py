"""Measurements of speed and memory; each module prints a table: `python -m benchmarks.NAME`."""
