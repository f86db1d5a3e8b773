"""A model's tensors in; the sizes that their names and shapes determine out."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CheckpointError
from ..tensor import Tensor


def consecutive(tensors: Mapping[str, Tensor], name: str, most: int, first: int = 0) -> int:
    """The number of names `name.format(i)`, `i` from `first` on without a gap; at most `most`."""
    return next((i for i in range(most) if name.format(first + i) not in tensors), most)


def size(tensors: Mapping[str, Tensor], name: str, axis: int, model: str) -> int:
    """One size of a tensor. Raises CheckpointError: `model` lacks the tensor, or it has no such axis."""
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) <= axis or not tensor.shape[axis]:
        raise CheckpointError(
            f"is {'an' if model[0] in 'aeio' else 'a'} {model} whose {name}, which determines a size, is "
            + ("missing" if tensor is None else f"{list(tensor.shape)}"),
            advice="The file is not whole: download it again",
        )
    return tensor.shape[axis]
