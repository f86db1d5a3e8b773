"""Layers: parameters and their use. A feature comes in, a feature comes out; a layer keeps no state.

A layer holds its parameters and its path (`up_3.conv_0`), under which the `Run` gives it canvases, statistics and
prepared weights. No layer depends on whether a run is dense or an edit.
"""

from .attention import Attention
from .base import Layer, Parameter
from .conv import AvgPool, Conv2d
from .labels import LabelConv, TokenEmbedding
from .linear import LatentStart, Linear
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from .pointwise import WriteOut

__all__ = [
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "GroupNorm",
    "InstanceNorm",
    "LabelConv",
    "LatentStart",
    "Layer",
    "LayerNorm",
    "Linear",
    "Parameter",
    "TokenEmbedding",
    "WriteOut",
]
