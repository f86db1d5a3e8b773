"""The built-in models' outputs today are those on file: dense, and edited under each policy, on the reference.

    python -m tests.editing.test_golden      # writes the file, from outputs that are meant to differ

The file has `ROWS` rows of each output and as many columns as have their distance. It shows a change that moves dense
runs and edits alike, which no comparison within one commit does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsegen
from sparsegen.backends.interface import Host
from sparsegen.images import read_image, read_labels
from sparsegen.weights import builtin
from tests.tolerances import check

GOLDEN = Path(__file__).with_name("golden.npz")
ROWS = 16
MODELS = ("landscape", "landscape-ddpm")


def outputs(name: str) -> Iterator[tuple[str, Host]]:
    """Each case and its output `[N, H, W, C]`: a session's, and of a diffusion model also the pipeline's."""
    model, known = sparsegen.load(name), builtin.get(name)
    assert known is not None
    if name == "landscape":  # of a fixed size
        session = sparsegen.Session(model, "reference")
        original = read_labels(known.examples[0].original)
        yield f"{name}, dense", session.run(original).output
        yield from edits(name, session, original, original + (original < 10), ("paper", "exact"))
        return
    image = np.ascontiguousarray(read_image(known.examples[0].original)[48:80, 48:80])
    noisy = np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    session = sparsegen.Session(model, "reference")
    yield f"{name}, dense", session.run(noisy, timestep=100).output
    yield from edits(name, session, noisy, noisy + 1, ("paper", "exact"))
    for policy in ("paper", "fast"):
        with sparsegen.SDEdit(model, steps=4, policy=policy, backend="reference") as pipeline:
            pipeline.run(image)
            yield from edits(f"{name}, SDEdit", pipeline, image, image // 2, (policy,))


def edits(
    name: str, session: Any, original: Host, other: Host, policies: Sequence[str]
) -> Iterator[tuple[str, Host]]:
    """The edits that put 8×8 pixels of another input into the original."""
    edited = np.array(original)
    edited[16:24, 16:24] = other[16:24, 16:24]
    for policy in policies:
        yield f"{name}, {policy}", session.edit(edited, policy=policy).output
        session.undo()


def sampled(output: Host) -> Host:
    step = output.shape[1] // ROWS
    return output[:, ::step, ::step]


@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_of_built_in_models_are_those_on_file(name: str) -> None:
    with np.load(GOLDEN) as golden:
        for case, output in outputs(name):
            check("golden", sampled(output), golden[case])


if __name__ == "__main__":
    found = {case: sampled(output) for name in MODELS for case, output in outputs(name)}
    np.savez_compressed(GOLDEN, **found)
