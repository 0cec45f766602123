"""One small driver for each contender of the data preparation benchmark.

A driver runs as `python -m benchmarks.peers.NAME TASK` with the interpreter of the contender's own environment, so it
imports nothing of tuneline's (but for tuneline's own driver) and needs nothing that the contender does not bring.
"""
