"""Layers: parameters and how they are used. A feature comes in, a feature comes out; nothing else is remembered.

A layer holds its parameters and its path (`up_3.conv_0`); canvases, statistics and prepared weights are asked
of the `Run` under that path. No layer knows whether a run is dense or an edit.
"""

from .attention import Attention
from .base import Layer, Parameter
from .conv import Added, AvgPool, Conv2d
from .labels import LabelConv
from .linear import LatentStart, Linear
from .norm import BatchNorm, GroupNorm, InstanceNorm

__all__ = [
    "Added",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "GroupNorm",
    "InstanceNorm",
    "LabelConv",
    "LatentStart",
    "Layer",
    "Linear",
    "Parameter",
]
