"""A state: a model's canvases of one input, painted by a dense run and repainted where an edit changed the input.

This is the core under every session. It works on canvases alone, without masks, images or history. A session of a GAN
has one state, a diffusion session one for each denoising step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from sparsegen.backends.interface import Backend, Host, Tiles

from ..engine.allocator import Allocator
from ..engine.carried import Delta, Deltas
from ..engine.feature import Feature
from ..engine.journal import Journal
from ..engine.memory_float16 import memory_kind
from ..engine.program import Program
from ..engine.run import LayerStep, OnLayer, Run
from ..engine.stats import LayerRecord
from ..models.base import Inputs, Model
from ..tiling.canvas import Canvas
from ..tiling.policies import NOTHING, Everything, Plan
from ..tiling.tiles import TileSet, union

OnRepaint = Callable[[Mapping[str, Host], TileSet, TileSet, Plan], None]
"""Called before a repaint, with its `canvases`, `changed`, `spread` and `plan`."""


class Repainted(NamedTuple):
    """What `State.repaint` did."""

    run: Run
    active: TileSet
    """The tiles of the output that it repainted."""
    values: Host
    """A host copy of the output's `wanted` tiles, `[K, TILE, TILE, C]`; 0 where a tile overhangs the border."""


class State:
    """A model's canvases of one input.

    Parameters
    ----------
    model
        The model that paints.
    backend
        The backend that computes.
    allocator
        Where canvases lie.
    storage
        The type that canvases are kept as, "float32" or "float16".

    Raises
    ------
    InputError
        The storage is unknown.
    """

    def __init__(
        self, model: Model, backend: Backend, *, allocator: Allocator, storage: str = "float32"
    ) -> None:
        self.model = model
        self.memory = memory_kind(storage)(backend, allocator, model.prepared_for(backend))
        self.conditions: dict[str, Host] = {}
        self.output_path = ""
        """The path of the output's canvas; empty before `paint`."""
        self.records: Sequence[LayerRecord] = ()
        """The layers' records of the run that painted it."""
        self.on_repaint: OnRepaint | None = None
        """An instrument that looks at every repaint; None: there is none."""
        self._program: Program | None = None
        """The steps that later runs replay; None: the model's code has not run on these canvases yet."""

    def paint(
        self,
        canvases: Mapping[str, Host],
        conditions: Mapping[str, Host],
        *,
        keep_canvases: bool = True,
        least_size: int = 0,
        carried_rows: int = 0,
        keep_scratch: bool = False,
        on_layer: OnLayer | None = None,
    ) -> tuple[Run, Host]:
        """The dense run: paint every canvas. The previous canvases are overwritten where the size is the same.

        Where they are painted under the same conditions, it replays the steps that the model's code came to before.

        Parameters
        ----------
        canvases
            The inputs by name, `[N, H, W, P]`, as `Model.encode` returns them.
        conditions
            By name, as `Model.encode` returns them.
        keep_canvases
            False: no canvas is kept longer than it is read, and nothing can be repainted.
        keep_scratch
            Whether scratch layers are kept as canvases too, so that their values can be looked at.
        least_size, carried_rows
            Which canvases are not kept, and computed whole by every edit that needs them: see `Memory`.

        Returns
        -------
        The run, and the output, float32 `[N, H, W, C]`.

        Raises
        ------
        NonFiniteError
            A layer computed a value that is not finite; the state must be painted again.
        """
        inputs = Inputs(dict(canvases), dict(conditions))
        before, backend = self.memory, self.memory.backend
        least_size = min(least_size, *inputs.shape[1:])
        kept = (before.least_size, before.carried_rows, before.keeps_scratch)
        if keep_canvases and on_layer is None and kept == (least_size, carried_rows, keep_scratch):
            painted = self._paint_again(inputs)
            if painted is not None:
                return painted
        same_size = all(canvas.shape[:3] == inputs.shape for canvas in self.inputs.values())
        self.output_path, self._program = "", None
        memory = type(before)(
            backend,
            before.allocator if same_size else before.allocator.fresh(),
            self.model.prepared_for(backend),
            before.canvases if same_size and keep_canvases else {},
            coded=backend.codebooks,
            keep_canvases=keep_canvases,
            least_size=least_size,
            carried_rows=carried_rows,
            keeps_scratch=keep_scratch,
        )
        if same_size:
            memory.codebooks = before.codebooks
            for codebook in memory.codebooks.values():
                codebook.clear()
        self.memory, self.conditions = memory, inputs.conditions
        del before  # its canvases are gone before others are painted
        memory.take_inputs({name: backend.upload(array) for name, array in inputs.canvases.items()})
        run = Run(memory, Everything(), on_layer=on_layer)
        output = self._walk(run, TileSet.full(*inputs.shape), note=keep_canvases)
        self.records = run.records
        if keep_canvases:
            self.output_path = output.path
        return run, memory.whole(output)

    def _paint_again(self, inputs: Inputs) -> tuple[Run, Host] | None:
        """The dense run by the program: of inputs of the same shapes under the same conditions. None: it cannot be."""
        memory, program, path = self.memory, self._program, self.output_path
        if program is None or not _same(inputs.conditions, self.conditions):
            return None
        if memory.prepared is not self.model.prepared_for(memory.backend):  # the model has other weights now
            return None
        arrays = {name: memory.canvases[path] for name, path in memory.inputs.items()}
        kinds = [
            {name: (tuple(each.shape), str(each.dtype)) for name, each in found.items()}
            for found in (arrays, inputs.canvases)
        ]
        if kinds[0] != kinds[1]:
            return None
        backend, run = memory.backend, program.run
        self.output_path, self._program = "", None
        backend.copy_arrays([(arrays[name], backend.upload(host)) for name, host in inputs.canvases.items()])
        try:
            run.begin(Everything())
            program.paint()
            run.finite.watch.ask()
            output = memory.whole(program.output)
            run.end()
        finally:
            run.let_go()
        self.output_path, self._program, self.records = path, program, run.records
        return run, output

    def repaint(
        self,
        canvases: Mapping[str, Host],
        changed: TileSet,
        plan: Plan,
        *,
        journal: Journal,
        spread: TileSet | None = None,
        carried: Deltas | None = None,
        on_layer: OnLayer | None = None,
        wanted: Tiles | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Repainted:
        """Write changed pixels into the inputs and recompute the active tiles, in place.

        Parameters
        ----------
        canvases
            The inputs by name: `[K, TILE, TILE, P]`, the values of the tiles of `changed`.
        changed
            The pixels of the inputs that take these values; other pixels of its tiles stay as they are.
        plan
            The rule for the active tiles.
        journal
            Saves every tile before it is overwritten; `journal.undo(memory)` takes the change back, also if this
            method failed or was interrupted.
        spread
            The pixels of the inputs from which active tiles grow; None: `changed`. (It has more pixels if earlier edits
            have not spread.)
        carried
            Deltas of an earlier denoising step, to be carried on instead of computed; None: every layer is computed.
        wanted
            The tiles of the output to return; None: those that are repainted.
        meanwhile
            Called once everything is queued: what the host has to do while a device computes.

        Raises
        ------
        NonFiniteError, SessionError
            A layer computed a value that is not finite; there is no room for a journal.
        """
        spread = changed if spread is None else spread
        if self.on_repaint is not None:
            self.on_repaint(canvases, changed, spread, plan)
        for name, values in canvases.items():
            self._write_input(name, values, changed, journal)
        if self._program is None:  # the canvases were loaded: note the steps, with no tile active
            self._walk(Run(self.memory, NOTHING), TileSet.empty(*spread.shape))
        program = self._program
        assert program is not None  # `_walk` noted it
        run = program.run
        try:
            run.begin(plan, journal=journal, edited=spread.edited, on_layer=on_layer, carried=carried)
            program.replay(spread, carried)
            active = program.output.changed
            meanwhile()
            run.finite.watch.ask()  # before the output is copied: one wait then serves both
            values = self.output_tiles(active.tiles if wanted is None else wanted)
            run.end()
        finally:
            run.let_go()
        return Repainted(run, active, values)

    def unspread(self, changed: TileSet, plan: Plan) -> TileSet:
        """The pixels of the inputs whose change an edit of `changed` pixels, under an approximate plan, has not spread.

        Norms that follow an edit change every pixel of its samples a little: there, those are all.
        """
        if not (plan.statistics and self.memory.moments):
            return changed
        return TileSet.full(*changed.shape, only=changed.edited)

    def deltas(self, step: int, journal: Journal, rows: int) -> Deltas:
        """The deltas of the last edit, whose `journal` this is, in the frontier of `rows` (`Program.frontier`).

        `step` is the number of the state's denoising step.
        """
        found: dict[str, Delta] = {}
        backend, program = self.memory.backend, self._program
        assert program is not None  # the edit replayed it
        for canvas in program.frontier(rows):
            if canvas.changed.count:
                tiles, old = journal.saved(backend, canvas.path)
                found[canvas.path] = Delta(canvas.changed, backend.tile_change(canvas.array, tiles, old))
        return Deltas(step, rows, found)

    def _write_input(self, name: str, values: Host, changed: TileSet, journal: Journal) -> None:
        """Write the changed pixels of an input into its canvas."""
        memory, backend, path = self.memory, self.memory.backend, self.memory.inputs[name]
        journal.save_before(memory, path, changed)
        if path in journal.whole:  # a new canvas, of undefined value
            backend.write_tiles(memory.canvases[path], *journal.saved(backend, path))
        backend.merge_tiles(memory.canvases[path], changed.tiles, backend.upload(values), changed.pixels)

    def _walk(self, run: Run, changed: TileSet, *, note: bool = True) -> Canvas:
        """Call the model's code, with `changed` pixels of the inputs; `note` its steps, for later edits."""
        inputs = [self.memory.input(name, changed) for name in self.memory.inputs]
        features = {
            name: Feature(run, (canvas,)) for name, canvas in zip(self.memory.inputs, inputs, strict=True)
        }
        steps: list[Callable[[], None]] | None = [] if note else None
        run.program = steps
        try:
            # damaged weights: the run finds and names values that are not finite
            # (a queue keeps arrays until they are used: a run that keeps nothing frees each at once)
            with np.errstate(all="ignore"), self.memory.backend.queue() if note else nullcontext():
                output = self.model.forward(features, self.conditions).parts[0]
            if note:
                run.memory.persist(output, run.finite)
            run.end()
        finally:
            run.let_go()
        if steps is not None:
            self._program = Program(run, inputs, steps, output, run.records, ran=changed.count > 0)
        return output

    @property
    def idle(self) -> tuple[LayerRecord, ...]:
        """The records of an edit that changes nothing."""
        return tuple(record.idle for record in self.records)

    @property
    def inputs(self) -> dict[str, Canvas]:
        """The inputs' canvases by name."""
        return {name: self.memory.input(name) for name in self.memory.inputs}

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)` of the output."""
        shape: tuple[int, int, int, int] = self.memory.canvases[self.output_path].shape
        return shape

    @property
    def layers_nbytes(self) -> int:
        """Memory of the layers' canvases, without the inputs'."""
        inputs = self.memory.inputs.values()
        return sum(int(each.nbytes) for path, each in self.memory.canvases.items() if path not in inputs)

    @property
    def layer_canvases(self) -> list[Canvas]:
        """The canvases that layers write, in the order of the model; `changed` of each is that of the last run."""
        steps = () if self._program is None else self._program.steps
        return [step.canvas for step in steps if isinstance(step, LayerStep)]

    @property
    def layer_tiles(self) -> dict[str, TileSet]:
        """Path of each layer -> the tiles that the last run recomputed: of a scratch layer those of its readers."""
        steps = () if self._program is None else self._program.steps
        readers: dict[str, list[TileSet]] = {}
        for step in steps:
            if isinstance(step, LayerStep):
                below = (each.path for layer in step.below for each in layer.chain())
                for path in (step.canvas.path, *below):
                    readers.setdefault(path, []).append(step.canvas.changed)
        return {path: union(found) for path, found in readers.items()}

    def output(self) -> Host:
        """A host copy of the whole output."""
        return self.memory.whole(self._output())

    def output_tiles(self, tiles: Tiles) -> Host:
        """A host copy of tiles of the output, `[K, TILE, TILE, C]`; 0 where a tile overhangs the border."""
        return self.memory.tiles(self._output(), tiles)

    def input(self, name: str) -> Host:
        """A host copy of a whole input."""
        return self.memory.whole(self.memory.input(name))

    def fetch_input(self, name: str, tiles: Tiles) -> Callable[[], Host]:
        """A queued copy of tiles of an input as they are now, like `output_tiles`; called, it waits and returns it."""
        backend = self.memory.backend
        return backend.fetch(backend.read_tiles(self.memory.input(name).array, tiles))

    def _output(self) -> Canvas:
        self.memory.begin()  # float16 memories share the canvases that they compute in: nothing there is this one's
        return self.memory.canvas(self.output_path, self.output_shape, "float32")


def _same(one: Mapping[str, Host], other: Mapping[str, Host]) -> bool:
    """Whether two mappings hold the same arrays under the same names."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
