"""Checkpoints in, parameters out: read without PyTorch, without running the code in them, without copying.

    with read_checkpoint("latest_net_G.pth") as checkpoint:      # torch.save (zip, legacy), safetensors, a folder
        family, config = identify(checkpoint)                    # by its keys; sizes off its shapes
        parameters = convert(family, checkpoint, expected)       # renamed, folded, checked

`checkpoint` finds the format and calls its reader in `formats`; the two readers of PyTorch's files share the machine of
`pickles`. All return `tensor.Tensor`s, views of a `mapped` file, at a cost that `limits` bounds. `keymap`, with
`transforms`, applies the table of one of the `families`; `which` and `averages` distinguish averaged weights from the
last ones. `parts` opens every model of a path, as Stable Diffusion has several; `lora` adds low-rank updates to their
parameters. `writer` writes files, `builtin` lists the models in the package. Every fault of a file is a
`CheckpointError`. Floors, none importing what stands above it:

    9  lora                    4  formats
    8  parts                   3  pickles
    7  families                2  tensor
    6  keymap · averages       1  limits · mapped · which · transforms · writer
    5  checkpoint              0  errors · dtypes · builtin
"""

from .checkpoint import Checkpoint, read_checkpoint
from .errors import CheckpointError, listed, shown
from .families import FAMILIES, identify, identify_all
from .families.native import (
    SCHEDULE_KEY,
    SIZE_KEY,
    VOCABULARY,
    Beside,
    beside_metadata,
    native_metadata,
    several_metadata,
)
from .keymap import Family, Origin, Parameters, Rule, convert
from .lora import Adapted, Updates, read_loras
from .parts import Part, Parts, read_parts
from .tensor import Tensor
from .which import Chosen, Which
from .writer import write_safetensors

__all__ = [
    "FAMILIES",
    "SCHEDULE_KEY",
    "SIZE_KEY",
    "VOCABULARY",
    "Adapted",
    "Beside",
    "Checkpoint",
    "CheckpointError",
    "Chosen",
    "Family",
    "Origin",
    "Parameters",
    "Part",
    "Parts",
    "Rule",
    "Tensor",
    "Updates",
    "Which",
    "beside_metadata",
    "convert",
    "identify",
    "identify_all",
    "listed",
    "native_metadata",
    "read_checkpoint",
    "read_loras",
    "read_parts",
    "several_metadata",
    "shown",
    "write_safetensors",
]
