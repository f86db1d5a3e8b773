"""Pickles without their danger: pickled bytes in; plain values, tensor layouts and inert stand-ins out.

`unpickle` is the machine, on `stack` (values, and groups of them that are dropped), `operands` (the bytes behind an
opcode) and `scan` (a look ahead). Names resolve by `allowlist`, or `refused_names` gives the error; `rebuild` makes
layouts of tensors, `storages` finds their bytes, `stand_ins` replace all other objects. `flatten` names the result;
`plain` decides whether a value holds tensors.
"""
