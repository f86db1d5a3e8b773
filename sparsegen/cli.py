"""The command line: arguments and files come in, pictures and tables go out; a mistake is one line and exit code 2."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparsegen.backends import BackendError, backend_status, default_backend, get_backend
from sparsegen.backends.interface import Host
from sparsegen.weights import CheckpointError, builtin, identify, read_checkpoint, shown

from . import __version__, pictures
from .errors import InputError, SparsegenError
from .loading import load, save
from .model import Model
from .policies import POLICIES, get_policy
from .profiling import check_mask, profile
from .run import LayerRecord
from .session import Session

app = typer.Typer(add_completion=False, rich_markup_mode=None)
# names out of files are printed: no markup, so that none of them means anything
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

DTypeName = Literal["float32", "float16"]
ModelOption = Annotated[str, typer.Option("--model", help="A built-in model's name or a checkpoint file.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend", help="What computes; see 'sparsegen backends'.", show_default="the fastest here"
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="How many threads compute.",
        show_default="SPARSEGEN_THREADS, else as many as there are cores",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", help=f"Which tiles an edit recomputes: {', '.join(POLICIES)}, such as adaptive(0.02)."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Say what a checkpoint cannot: name=value, such as num_upsampling_layers=more."
    ),
]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Edit a generated picture and recompute only what the edit touches."""
    if show:
        out.print(__version__)
        raise typer.Exit


@app.command()
def demo(
    model: ModelOption = "landscape",
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    policy: PolicyOption = "paper",
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write.")] = Path("demo.png"),
) -> None:
    """Edit a built-in example; write original, labels, dense, sparse and tiles side by side; print what it cost."""
    known = builtin.get(model)
    if known is None:
        raise InputError(f"no built-in model {model!r}; built in: {', '.join(builtin.names())}")
    check_writable(output, suffix=".png")
    engine, network, example = get_backend(backend, threads=threads), load(model), known.examples[0]
    get_policy(policy, paper=network.paper)
    change = example.edits[0]
    original, edited = (pictures.read_labels(path) for path in (example.original, change.path))
    session = Session(network, engine)
    with layer_progress(network, original) as progress:
        first = session.run(original, progress=progress("dense run of the original"))
        sparse = session.edit(edited, policy=policy, progress=progress("sparse edit"))
        # the same session again: what is made ready once, the weights, is ready for both
        dense = session.run(edited, progress=progress("dense run of the edited"))
    palette = known.labels.palette
    panels = [
        ("original labels", pictures.colourise(original, palette)),
        (f"edited labels: {change.caption}", pictures.colourise(edited, palette)),
        ("active tiles over the result", pictures.overlay_tiles(sparse.image, sparse.active)),
        ("original", first.image),
        (f"edited, dense: {dense.stats.milliseconds:.0f} ms", dense.image),
        (f"edited, sparse: {sparse.stats.milliseconds:.0f} ms", sparse.image),
    ]
    pictures.write_png(output, pictures.sheet(panels, columns=3))
    dense_ms, sparse_ms = dense.stats.milliseconds, sparse.stats.milliseconds
    rows = [
        *[row for row in sparse.stats.lines() if row[0] not in ("time", "canvases", "codebooks")],
        ("dense run", f"{dense_ms:.0f} ms"),
        ("sparse edit", f"{sparse_ms:.0f} ms ({dense_ms / sparse_ms:.1f} times as fast)"),
        ("PSNR, sparse against dense", f"{pictures.psnr(sparse.images, dense.images):.1f} dB"),
        *sparse.stats.memory(),
    ]
    print_table(f"{model}: {change.caption} (backend {engine.name}, policy {policy})", rows)
    out.print(f"picture written to {output.resolve()}", soft_wrap=True)


@app.command()
def edit(
    original: Annotated[Path, typer.Option("--original", help="The label map that is painted first (PNG).")],
    edited: Annotated[
        list[Path], typer.Option("--edited", help="An edited label map; repeat to go on editing.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The PNG to write; several edits get -1, -2, …")
    ],
    model: ModelOption = "landscape",
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Recompute where this picture is not black.")
    ] = None,
    policy: PolicyOption = "paper",
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    instances: Annotated[
        Path | None,
        typer.Option("--instances", help="Instance map of the original, for networks with edges."),
    ] = None,
    edited_instances: Annotated[
        list[Path] | None, typer.Option("--edited-instances", help="Instance map of each edited label map.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Draw the latent z of networks that have one.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Paint the original, then recompute only what each edited label map changes."""
    # everything that can be wrong is looked at before the work begins
    outputs = [output] if len(edited) == 1 else [numbered(output, i + 1) for i in range(len(edited))]
    given = [original, *edited, *(edited_instances or ()), *(path for path in (mask, instances) if path)]
    for path in outputs:
        check_writable(path, suffix=".png", inputs=given)
    if edited_instances and (instances is None or len(edited_instances) != len(edited)):
        raise InputError(
            f"{len(edited)} edited label maps have {len(edited_instances)} --edited-instances; "
            "give one for each, and --instances for the original"
        )
    engine, network = get_backend(backend, threads=threads), load(model, **parse_settings(settings))
    get_policy(policy, paper=network.paper)
    known = builtin.get(model)
    palette = known.labels.palette if known else None
    first, *later = [pictures.read_labels(path, palette) for path in (original, *edited)]
    conditions: dict[str, Any] = {} if seed is None else {"z": latent(network, seed)}
    if instances is not None:
        conditions["instances"] = pictures.read_labels(instances)
    base = network.encode(first, **conditions)
    changes: list[dict[str, Any]] = [
        {} if not edited_instances else {"instances": pictures.read_labels(edited_instances[i])}
        for i in range(len(later))
    ]
    for path, labels, change in zip(edited, later, changes, strict=True):
        shape = network.encode(labels, **change).shape
        if shape != base.shape:
            raise InputError(
                f"{path}: {shape[1]}×{shape[2]}, but {original} is {base.shape[1]}×{base.shape[2]}"
            )
    user_mask = None if mask is None else check_mask(pictures.read_mask(mask), base.shape)

    session = Session(network, engine)
    with layer_progress(network, first, **conditions) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pixels outside the mask: said below, in our words
        session.run(first, progress=progress("dense run of the original"), **conditions)
        for path, target, labels, change in zip(edited, outputs, later, changes, strict=True):
            result = session.edit(
                labels, mask=user_mask, policy=policy, progress=progress(path.name), **change
            )
            text = f"{__version__} model={model} policy={policy} backend={engine.name} seed={seed}"
            pictures.write_png(target, result.image, text={"sparsegen": text})
            print_table(f"{path} → {target}", result.stats.lines())
            if result.stats.ignored_pixels:
                out.print(
                    f"{result.stats.ignored_pixels} changed pixels lie outside {mask} and were not applied"
                )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint: PyTorch (zip, legacy) or safetensors.")],
) -> None:
    """Say what a checkpoint is: format, family, sizes, tensors. Nothing in it is executed."""
    checkpoint = read_checkpoint(file)
    try:
        family, config = identify(checkpoint)
        described = [("family", family.name), ("network", shown(family.model))]
        described += [(shown(key), shown(value)) for key, value in config.items()]
    except CheckpointError as error:
        described = [("family", f"not recognised: {error}")]
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    tensors = [("tensors", f"{len(checkpoint.tensors)}, {size / 1e6:.1f} MB")]
    print_table(str(file), [("format", checkpoint.format), *described, *tensors])
    names = {shown(name): tensor for name, tensor in checkpoint.tensors.items()}
    width = max(map(len, names), default=0)
    for name, tensor in names.items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        out.print(f"  {name:<{width}}  {tensor.dtype:<9} {shape}", soft_wrap=True)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint of a family that sparsegen knows.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The safetensors file to write.")],
    dtype: Annotated[DTypeName, typer.Option("--dtype", help="Storage type of the weights.")] = "float32",
    settings: SetOption = None,
) -> None:
    """Write a checkpoint as safetensors with sparsegen's names: smaller, safe, and quick to load."""
    check_writable(output, inputs=[file])
    with progress_bars() as bars:

        def progress(description: str) -> Callable[[int, int, str], None]:
            task = bars.add_task(description, layer="")
            return lambda done, total, name: bars.update(task, completed=done, total=total, layer=name)

        network = load(file, progress=progress("reading"), **parse_settings(settings))
        save(network, output, dtype=dtype, progress=progress("writing"))
    count = sum(int(np.prod(parameter.shape)) for parameter in network.parameters().values())
    size = output.stat().st_size
    out.print(
        f"{file} → {output}: {network.family}, {count / 1e6:.2f} M parameters, {size / 1e6:.2f} MB {dtype}",
        soft_wrap=True,
    )


@app.command()
def backends() -> None:
    """List the backends and whether each can run here."""
    default = default_backend()
    available = {name: "available" + ", the default" * (name == default) for name in backend_status()}
    print_table("backends", [(name, why or available[name]) for name, why in backend_status().items()])


@app.command()
def warmup(backend: BackendOption = None) -> None:
    """Compile a backend's kernels now, for images and installers, so that the first edit need not wait for them."""
    engine, start = get_backend(backend), time.perf_counter()
    ready = engine.warm_up()
    out.print(f"{engine.name}: {ready} ({time.perf_counter() - start:.1f} s)", soft_wrap=True)


# -- what the commands share -----------------------------------------------------------------------------


def print_table(title: str, rows: Any) -> None:
    """Two columns under a title."""
    out.print(title, style="bold", soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)


@contextmanager
def layer_progress(
    network: Model, labels: Host, **conditions: Any
) -> Iterator[Callable[[str], Callable[[LayerRecord], None]]]:
    """A factory of progress bars, one step a layer."""
    layers = len(profile(network, labels, **conditions).layers)
    with progress_bars() as bars:

        def start(description: str) -> Callable[[LayerRecord], None]:
            task = bars.add_task(description, total=layers, layer="")
            return lambda record: bars.update(task, advance=1, layer=record.path)

        yield start


def progress_bars() -> Progress:
    """Bars on stderr that vanish when done; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[layer]}"),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def latent(network: Model, seed: int) -> Host:
    """z from a standard normal; InputError where the network has none."""
    length = getattr(network.config, "z_dim", 0)
    if not length:
        raise InputError("--seed: this network starts from the label map; it has no latent z")
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def numbered(path: Path, number: int) -> Path:
    """`out.png` → `out-2.png`."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it reads as such, else text."""
    parsed: dict[str, Any] = {}
    for setting in settings or ():
        name, equals, text = setting.partition("=")
        if not name or not equals:
            raise InputError(f"--set {setting}: expected name=value, such as num_upsampling_layers=more")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def check_writable(path: Path, *, suffix: str = "", inputs: Sequence[Path] = ()) -> None:
    """Fail before the work, not after it, when a result could not be written."""
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of the file to write")
    if suffix and path.suffix.lower() != suffix:
        raise InputError(f"{path}: the picture is written as PNG; give a name that ends in {suffix}")
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist")
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
        raise InputError(f"{path}: is also an input; give another name to write to")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path}: cannot be written (read-only)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console without × shows ?, and the work is not lost
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return int(app(words or ["--help"], standalone_mode=False) or 0)
    except (SparsegenError, CheckpointError, BackendError) as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = "not enough memory for this input; give a smaller one"
    except Exception as error:
        # what the command-line library raises for wrong words; its class differs between its versions
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        message = f"{describe()} (see 'sparsegen --help')"
    err.print(f"error: {' '.join(message.split())}", soft_wrap=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
