"""The errors of the engine, raised for bad input: each message names the problem, the expected value and the fix."""


class SparsegenError(Exception):
    """Base of the engine's errors: a message for the user, never a bug report."""


class InputError(SparsegenError, ValueError):
    """An input, mask or option cannot be used as it is."""


class ShapeError(SparsegenError, ValueError):
    """A size or channel count does not fit the model."""


class NonFiniteError(SparsegenError, ArithmeticError):
    """A layer computed NaN or infinity: its weights or the input are damaged, or too large for float32."""


class SessionError(SparsegenError, RuntimeError):
    """The session is not in a state for this: no run yet, nothing to undo, a file of another model."""
