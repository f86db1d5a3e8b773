"""The finite checks of one run: layers record the tiles that they wrote; the run checks them once, at its end.

So no layer waits for the device. A value that is not finite is still located and named, and the caller of the run takes
the whole change back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsegen.backends.interface import Array, Backend, Position, Tiles, Watch

from ..errors import NonFiniteError, SparsegenError


class FiniteChecks:
    """The checks of one run, in the order of its layers."""

    def __init__(self, backend: Backend, watch: Watch | None = None) -> None:
        self._backend = backend
        self.watch: Watch = backend.watch_run() if watch is None else watch
        self._errors: list[Callable[[Position], SparsegenError]] = []

    def replayed(self, watch: Watch) -> FiniteChecks:
        """The same checks in a replay of the recorded run that they were made in, whose watch is `watch`."""
        other = FiniteChecks(self._backend, watch)
        other._errors = self._errors
        return other

    def entry(self, error: Callable[[Position], SparsegenError]) -> int:
        """The number of a new check, for the backend's watch; `error(position)` is raised where it fails."""
        self._errors.append(error)
        return len(self._errors) - 1

    def layer(self, path: str, canvas: Array, tiles: Tiles, *, inners: Sequence[str] = ()) -> None:
        """Check the values that a layer wrote into some tiles; `inners`: the paths of layers computed on its way."""
        self.watch.watch(canvas, tiles, self.entry(lambda at: not_finite(path, at, inners)))

    def raise_first(self) -> None:
        """Wait for all checks, and raise the error of the first that failed."""
        found = self.watch.first_watched()
        if found is not None:
            number, position = found
            raise self._errors[number](position)


def not_finite(path: str, at: Position, inners: Sequence[str] = ()) -> NonFiniteError:
    """The error of a value at `at` (sample, row, column, channel) of a layer's output; `inners` as in `layer`."""
    on_its_way = f", of {', '.join(inners)}, computed on its way," if inners else ""
    return NonFiniteError(
        f"{path}: the value of sample {at[0]}, row {at[1]}, column {at[2]}, channel {at[3]} is not finite; "
        f"check the input, and the weights of this layer{on_its_way} and of the layers before it"
    )
