"""Pickles, read without running them: pickled bytes in; plain values, tensor layouts and inert stand-ins out.

`unpickle` is the machine, on `stack` (values, and groups of them that are dropped), `operands` (the bytes after an
opcode) and `scan` (a pass ahead). Names resolve by `allowlist`, or `refused_names` gives the error; `rebuild` makes
layouts of tensors, `storages` finds their bytes, `stand_ins` replace all other objects. `flatten` names the leaves of
the result; `plain` decides whether a value holds tensors.
"""
