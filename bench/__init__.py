"""Benchmarks: every engine in a separate process, in turn, checked before it is timed; run from the root."""
