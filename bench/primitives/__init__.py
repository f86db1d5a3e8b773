"""Regressions of single primitives: every primitive of the contract on every backend, checked, timed, compared.

`cases.py` is the table, `calls.py` makes a case's arrays and its call, `test_primitives.py` times it,
`python -m bench.primitives` runs all and prints ratios to an earlier run on the same machine.
"""
