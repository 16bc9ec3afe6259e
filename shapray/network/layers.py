"""Layers with weights, and where their channels lie in these."""

from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Layer: TypeAlias = _ConvNd | nn.Linear
"""Convolutions of any kind, and linear layers."""


def is_scored(layer: Layer) -> bool:
    """Whether units can be taken from what a layer reads and puts out: of all convolutions but
    those in groups that are no `Conv2d`."""
    return isinstance(layer, nn.Conv2d | nn.Linear) or layer.groups == 1


def dimensions(layer: Layer) -> tuple[int, int]:
    """Those of its weight along which its outputs and its inputs lie."""
    return (1, 0) if isinstance(layer, _ConvTransposeNd) else (0, 1)


def rows(layer: Layer) -> Tensor:
    """Its weight, a view, with what it puts out first and then what it reads."""
    return layer.weight.transpose(0, 1) if dimensions(layer) == (1, 0) else layer.weight
