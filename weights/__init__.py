"""Checkpoints in, parameters out: read without PyTorch, without running what is in them, without copying.

    with read_checkpoint("latest_net_G.pth") as checkpoint:      # torch.save (zip, legacy), safetensors, a folder
        family, config = identify(checkpoint)                    # by its keys; sizes off its shapes
        parameters = convert(family, checkpoint, expected)       # renamed, folded, checked

Reading: `checkpoint` finds the format and asks `pytorch_zip`, `pytorch_legacy` or `safetensors_file`; the two
of PyTorch share the pickle machine `unpickle` (on `pickle_operands` and `pickle_scan`) with its `allowlist`,
`refused_names`, `stand_ins`, `rebuild`, `storages` and `flatten`. All give `tensor.Tensor`s that look into a `mapped`
file; `diffusers_folder` says which files of a folder these are, `not_checkpoints` what a file is that is none. Naming:
`keymap` with `transforms`, one table per family in `families`; `which` and `averages` tell averaged weights from the
last ones. Writing: `writer`. Everything wrong with a file is a
`CheckpointError`.
"""

from .checkpoint import Checkpoint, read_checkpoint
from .errors import CheckpointError, listed, shown
from .families import FAMILIES, identify
from .families.native import SCHEDULE_KEY, SIZE_KEY, native_metadata
from .keymap import Family, Parameters, Rule, convert
from .tensor import Tensor
from .which import Chosen, Which
from .writer import write_safetensors

__all__ = [
    "FAMILIES",
    "SCHEDULE_KEY",
    "SIZE_KEY",
    "Checkpoint",
    "CheckpointError",
    "Chosen",
    "Family",
    "Parameters",
    "Rule",
    "Tensor",
    "Which",
    "convert",
    "identify",
    "listed",
    "native_metadata",
    "read_checkpoint",
    "shown",
    "write_safetensors",
]
