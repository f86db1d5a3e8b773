"""Benchmarks: every engine in a process of its own, in turn, checked before it is timed; run from the root."""
