"""The page of an explanation: numbers come in as Python has them, one HTML document comes out.

`static/` holds the document, its style and its script; all that they show is one JSON object in it. Plots that nobody
clicks are drawn here, by matplotlib.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ...engine.stats import megabytes
from ...errors import InputError
from ..page import embedded
from .findings import Findings
from .forward import REPEATS, Layer
from .outcomes import region_psnr
from .tile import TileNumbers

STRONGER = 8
"""Differences of images are shown so many times as strong."""


def page(explained: Findings) -> str:
    """The document. Raises InputError: matplotlib is not installed."""
    static = files(__package__) / "static"
    text = {name: (static / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    parts = {"style": text["css"], "script": text["js"], "data": embedded(_data(explained))}
    document = text["html"]
    for name, part in parts.items():
        document = document.replace("{{" + name + "}}", part)
    return document


def _data(e: Findings) -> dict[str, Any]:
    """Everything that the page's script reads."""
    layers = [_layer(layer, e) for layer in e.forward.layers]
    stats, dense = e.edited.stats, e.dense.image
    culprit = e.forward.culprit
    return {
        "about": _about(e),
        "made": _made(),
        "size": list(e.original.shape[:2]),
        "psnr": _decibel(e.psnr),
        "strokes": e.strokes_title,
        "facts": [list(line) for line in (*e.settings, *stats.lines())],
        "images": {
            "original": _uri(e.original),
            "strokes": _uri(e.strokes),
            "edited": _uri(e.edited.image),
            "dense": _uri(dense),
            "difference": _uri(difference(e.edited.image, dense)),
            "mask": _uri(np.repeat(~e.difference[..., None], 3, -1).astype(np.uint8) * 255),
        },
        "layers": layers,
        "parts": {one.part: one.title for one in e.forward.passes},
        "partsText": _parts_text(e),
        "first": layers.index(_first(layers, e.repeated)),
        "step": e.step,
        "steps": [
            {
                "computed": each.record.refreshed,
                "macs": each.record.macs,
                "macsDense": each.record.macs_dense,
                "ms": each.record.milliseconds,
                "preview": _uri(each.preview),
                "dense": _uri(each.dense),
                "psnr": _decibel(region_psnr(each.preview, each.dense, e.original)),
            }
            for each in e.steps
        ],
        "stepsText": _steps_text(e),
        "distance": _distance_text(e, culprit),
        "timeText": _time_text(e),
        "sizes": [
            {
                "name": f"{each.part} {each.height}×{each.width}".strip(),
                "active": each.active,
                "macs": each.macs,
                "macsDense": each.macs_dense,
                "ms": each.milliseconds,
            }
            for each in e.forward.sizes
        ],
        "costs": [[cost.area, cost.milliseconds, cost.macs] for cost in e.costs],
        "whatIfs": [
            {
                "name": each.name,
                "text": each.text,
                "image": _uri(each.image),
                "difference": _uri(difference(each.image, dense)),
                "psnr": _decibel(each.psnr),
            }
            for each in e.what_ifs
        ],
        "plots": {
            "histogram": _histogram(e),
            "memory": _memory(e),
            "costs": _costs(e) if e.costs else "",
            "steps": _steps(e) if e.steps else "",
        },
    }


def _first(layers: Sequence[dict[str, Any]], repeated: str) -> dict[str, Any]:
    """The layer that is shown first: with tiles to look into, of the highest resolution, late, but not the last.

    It is one that runs at every denoising step, if there are others beside these.
    """

    def order(place: int) -> tuple[bool, bool, int, int]:
        layer = layers[place]
        transformed = any(tile["transformed"] for tile in layer["tiles"])
        return layer["part"] == repeated, transformed, layer["h"], place

    return layers[max(range(max(1, len(layers) - 1)), key=order)]


def _layer(layer: Layer, e: Findings) -> dict[str, Any]:
    return {
        "path": layer.path,
        "kind": layer.kind,
        "part": layer.part,
        "kept": layer.kept,
        "h": layer.height,
        "w": layer.width,
        "channels": layer.channels,
        "rows": layer.active.shape[0],
        "columns": layer.active.shape[1],
        "active": _base64(np.packbits(layer.active)),
        "count": int(layer.active.sum()),
        "total": layer.active.size,
        "macs": layer.macs,
        "macsDense": layer.macs_dense,
        "ms": layer.milliseconds,
        "inherited": layer.inherited,
        "own": layer.own,
        "error": _base64(_shades(layer)),
        "file": layer.file,
        "line": layer.line,
        "code": layer.code,
        "tiles": [_tile(tile) for tile in layer.tiles],
    }


def _tile(tile: TileNumbers) -> dict[str, Any]:
    parts = [tile.window, tile.kernel, tile.sums, tile.output]
    transformed = [tile.transformed_kernel, tile.transformed_window, tile.products]
    parts += [part for part in transformed if part is not None]
    return {
        "row": tile.row,
        "column": tile.column,
        "top": tile.top,
        "left": tile.left,
        "input": tile.input_channel,
        "output": tile.output_channel,
        "window": len(tile.window),
        "kernel": len(tile.kernel),
        "stride": tile.stride,
        "transformed": tile.products is not None,
        "numbers": _base64(np.concatenate([np.ravel(part) for part in parts]).astype("<f4")),
    }


def _shades(layer: Layer) -> Host:
    """The error of each tile as a shade, uint8: 255 where it is as large as what moved most, 32 less for each half."""
    largest = float(layer.moved.max(initial=0.0)) or 1.0
    with np.errstate(divide="ignore"):
        levels = 1 + np.log2(layer.error / largest) / 8  # 0: 2^-8 of it, and less
    return np.asarray(np.round(np.clip(levels, 0, 1) * 255), np.uint8)


def difference(image: Host, dense: Host) -> Host:
    """How an image differs from the dense one: grey where equal, brighter or darker where not."""
    return np.asarray(np.clip(128 + STRONGER * (image.astype(int) - dense), 0, 255), np.uint8)


# -- texts


def _about(e: Findings) -> str:
    name = f"{e.name}: " if e.name else ""
    kinds = ", ".join(type(model).__name__ for model in e.models.values())
    return (
        f"{name}{kinds}, {_parameters(e) / 1e6:.2f} M parameters. Policy {e.policy}. The edit was made on the "
        f"backend {e.backend}; the values of layers below are the reference backend's, which agree to rounding."
    )


def _parameters(e: Findings) -> int:
    """The number of weights of all models."""
    return sum(math.prod(each.shape) for model in e.models.values() for each in model.parameters().values())


def _made() -> str:
    return f"Made by sparsegen {version('sparsegen')}. The page loads nothing from elsewhere."


def _parts_text(e: Findings) -> str:
    """A word on the passes, if there are several."""
    if not e.repeated:
        return ""
    side, parts = e.models["decoder"].config.reduction, {one.part for one in e.forward.passes}
    idle = "" if "encoder" in parts else " The encoder computed nothing: no pixel that it reads has changed."
    return (
        f"Three models follow each other: encoder and decoder run once, the UNet at each of {len(e.steps)} steps, of "
        f"which number {e.step} is shown. The UNet computes on latents, each of which stands for {side}×{side} pixels "
        f"of the image: that is why its tiles are so large.{idle}"
    )


def _steps_text(e: Findings) -> str:
    computed = sum(each.record.refreshed for each in e.steps)
    if computed == len(e.steps):
        return "Every step computes its active tiles."
    carried = any(each.record.macs for each in e.steps if not each.record.refreshed)
    others = (
        "compute the highest resolutions, from deltas of the rest that they carry on along a parabola"
        if carried
        else "carry the last deltas on, along a parabola, and compute nothing"
    )
    return f"{computed} of {len(e.steps)} steps compute their active tiles at every resolution; the others {others}."


def _time_text(e: Findings) -> str:
    """Where the time of the layers is, in words."""
    sizes, layers = e.forward.sizes, [layer for layer in e.forward.layers if layer.milliseconds is not None]
    whole = sum(size.milliseconds for size in sizes)
    if not whole:
        return "Times were not measured."
    most, longest = (
        max(sizes, key=lambda size: size.milliseconds),
        max(layers, key=lambda layer: layer.milliseconds or 0.0),
    )
    dense = most.macs_dense / max(1, sum(size.macs_dense for size in sizes))
    of = f" of step {e.step}" if e.step is not None else ""
    return (
        f"The layers{of} take {whole:.3g} ms (each the least of {REPEATS} edits). "
        f"{f'{most.part} {most.height}×{most.width}'.strip()} takes most, {most.milliseconds / whole:.0%}; of a dense "
        f"run's MACs it has {dense:.0%}. The longest layer is {longest.path}, {longest.milliseconds:.2g} ms. The time "
        "of the whole edit, above, also has the mask, the plan of the tiles, the moments of norms and Python."
    )


def _distance_text(e: Findings, culprit: Layer | None) -> str:
    if culprit is None:
        return "No layer of this edit errs on its own: it equals the dense run."
    active = float((culprit.error[culprit.active] ** 2).sum()) / max(float((culprit.error**2).sum()), 1e-300)
    where = (
        "mostly in tiles that were recomputed: its norm uses other statistics than the dense run's"
        if active > 0.5
        else "mostly in tiles that were not recomputed: they should have changed, and stay as the original has them"
    )
    ends = {layer.part: layer.inherited for layer in e.forward.layers}  # the last layer of each part
    inherited = ", ".join(f"{part} {_short(value)}".strip() for part, value in ends.items())
    passes = (
        "What each pass inherits at its end" if len(ends) > 1 else "What the whole pass inherits at its end"
    )
    return (
        f"The layer that errs most on its own is {culprit.path} ({culprit.height}×{culprit.width}): "
        f"{_short(culprit.own)} of what it should move. The error there lies {where}. {passes}: {inherited}."
    )


def _short(value: float) -> str:
    """Two digits."""
    return f"{value:.2g}"


# -- plots


def check_plots() -> Any:
    """The module matplotlib. Raises InputError: it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "explain draws its plots with matplotlib, which is not installed: pip install 'sparsegen[report]'"
        ) from None
    return matplotlib


def _figure(width: float, height: float) -> tuple[Any, Any]:
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """A figure as SVG, to stand in a page."""
    written = io.StringIO()
    # text stays text; names of parts are the same each time
    with check_plots().rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Title": title})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _histogram(e: Findings) -> str:
    far = np.abs(e.edited.image.astype(int) - e.dense.image).max(-1)
    changed = (e.dense.image != e.original).any(-1)
    figure, axes = _figure(9, 2.4)
    bins = np.arange(0, max(2, int(far.max()) + 2)) - 0.5
    kinds = [far[changed], far[~changed]]
    axes.hist(
        kinds,
        bins,
        color=["black", "0.7"],
        label=["that the dense run changes", "that it does not"],
        log=True,
    )
    axes.set(xlabel="largest difference of a pixel from the dense run, of 255", ylabel="pixels")
    axes.legend(loc="upper right", frameon=False)
    return _svg(figure, "Histogram of the distance from dense")


def _memory(e: Findings) -> str:
    stats = e.edited.stats
    bars = {
        "canvases": stats.canvas_bytes,
        "codebooks": stats.codebook_bytes,
        "journal of this edit": stats.journal_bytes or stats.undo_bytes,
        "weights, in float32": 4 * _parameters(e),
    }
    shown = {name: count for name, count in bars.items() if count}
    figure, axes = _figure(9, 0.5 + 0.35 * len(shown))
    drawn = axes.barh(list(shown), [count / 1e6 for count in shown.values()], color="0.3")
    axes.bar_label(drawn, [megabytes(count) for count in shown.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="MB")
    return _svg(figure, "Memory")


def _costs(e: Findings) -> str:
    figure, axes = _figure(9, 2.8)
    areas = [cost.area for cost in e.costs]
    dense = e.dense.stats.milliseconds
    axes.plot(areas, [c.milliseconds / dense for c in e.costs], "k-o", markersize=4, label="time")
    axes.plot(areas, [c.macs / c.macs_dense for c in e.costs], "--s", color="0.5", markersize=4, label="MACs")
    axes.axhline(1, color="0.7", linewidth=1)
    axes.set(xscale="log", xlabel="edited share of the image", ylabel="share of the dense run")
    axes.set_xticks(areas, [f"{area:.0%}" for area in areas])
    axes.set_ylim(bottom=0)
    axes.minorticks_off()
    axes.legend(loc="upper left", frameon=False)
    return _svg(figure, "Cost of an edit over its area")


def _steps(e: Findings) -> str:
    figure, axes = _figure(9, 2.2)
    places = range(len(e.steps))
    axes.bar(places, [each.record.milliseconds for each in e.steps], color="0.3")
    axes.set(xlabel="denoising step", ylabel="ms")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, "Time of each step")


# -- encoding


def _uri(image: Host) -> str:
    from ...images import png_bytes  # here: the door of the package loads no Pillow

    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _base64(values: Host) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _decibel(value: float) -> float | None:
    """For JSON: None stands for infinity."""
    return value if math.isfinite(value) else None
