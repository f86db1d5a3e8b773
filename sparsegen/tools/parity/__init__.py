"""Parity: a model and the same network in PyTorch come in, which layer differs, by how much and why comes out.

`hooks` runs the user's module: `calling` gives it its arguments, `names` tells which of its layers is which,
`following` finds the values that layers stand for. They are a `reference`, which a golden file keeps for machines
without PyTorch. `comparison` holds the model to it, over a `walk` of its layers; `causes` tests `hypotheses` about the
first that differs, by calls that `listening` changes; `difference` measures, `report` and `growth` show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparsegen.backends.interface import Backend
from sparsegen.backends.registry import get_backend

from ...errors import InputError
from ...models.base import Model, checked_model
from ...tiling.policies import Policy
from .calling import Call
from .comparison import compare
from .hooks import record
from .reference import Reference
from .report import Parity

__all__ = ["TOLERANCE", "Parity", "Reference", "parity", "record"]

TOLERANCE = 1e-5
"""The relative error up to which a layer's own difference is rounding: float32 sums in another order and by Winograd's
transforms (measured 2e-6 of a few hundred products, 5e-6 of the 9216 of GauGAN's widest layers)."""


def parity(
    model: Model,
    module: Any,
    image: Any = None,
    *,
    edited: Any = None,
    policy: str | Policy = "paper",
    backend: str | Backend | None = None,
    tolerance: float = TOLERANCE,
    golden: str | os.PathLike[str] | None = None,
    call: Call | None = None,
    names: Mapping[str, str] | None = None,
    **conditions: Any,
) -> Parity:
    """Hold a model to the same network in PyTorch, layer by layer.

    Each layer is compared twice: when both networks run from the input (its *inherited* error), and alone, reading
    PyTorch's values (its *own*). For the first that differs on its own, likely causes are tested one by one.

    Parameters
    ----------
    model
        The model, with its weights.
    module
        The user's `torch.nn.Module`, whose code runs here; or the path of a golden file, which needs no PyTorch.
    image
        The input, as `Session.run` takes it: labels, a noisy image `[H, W, C]` or `[N, H, W, C]`. A golden file has it.
    edited
        An edited input: the sparse edit is compared with the module's dense run of it, inside and outside of the mask.
    policy
        Of that edit.
    backend
        What computes the model; None: the fastest here.
    tolerance
        The error of a layer on its own, relative to its largest value, up to which a difference is rounding.
    golden
        A file to write: everything that PyTorch computed, to be checked elsewhere.
    call
        `call(module, inputs)`: runs the module on `inputs` (`Model.encode`: `canvases` and `conditions` by name, arrays
        `[N, H, W, C]`) and returns the output tensor. None: the usual way of the family.
    names
        Path of a layer -> name of the module that computes it, for modules of no known family. None: by the tables of
        the checkpoint families.
    conditions
        As for `Session.run`: `timestep`, `text`, `instances`, …

    Returns
    -------
    Parity
        `print` shows the table; `write_json`, `write_html`.

    Raises
    ------
    InputError
        PyTorch is not installed; the module is of another family than the model, or of none; an input is missing.
    ShapeError
        The input, or the reference's output, does not fit the model.
    CheckpointError
        The golden file is damaged or cannot be written.
    """
    checked_model(model, "parity needs a model")
    if isinstance(module, str | os.PathLike):
        given = {
            "image": image,
            "edited": edited,
            "golden": golden,
            "call": call,
            "names": names,
            **conditions,
        }
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise InputError(f"{beside[0]} is given beside a golden file, which has its own; omit it")
        reference = Reference.load(module)
    else:
        if image is None:
            raise InputError("no image is given; parity(model, module, image) runs both on it")
        reference = record(model, module, image, edited=edited, call=call, names=names, **conditions)
        if golden is not None:
            reference.save(golden)
    return compare(model, reference, get_backend(backend), policy=policy, tolerance=tolerance)
