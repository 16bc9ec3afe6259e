"""Where a layer's channels lie."""

from collections.abc import Sequence

import torch
from torch import nn

from shapray.network.reduced import Reduced


def channel_dimension(module: nn.Module, shape: Sequence[int]) -> int:
    """The dimension that channels lie along in what a layer reads or puts out, of this shape."""
    if isinstance(module, Reduced):
        return module.channel
    if isinstance(module, nn.Linear):
        return len(shape) - 1
    if isinstance(module, nn.LayerNorm) and shape[-1] == module.normalized_shape[-1]:
        return 1 if _turns_images(module, shape) else len(shape) - 1
    return 1 if len(shape) > 1 else 0


def _turns_images(module: nn.LayerNorm, shape: Sequence[int]) -> bool:
    """Whether it is a LayerNorm of images, which it turns for its own forward: what it reads has as
    many columns as channels, and does not tell. One that has none would fail on more columns."""
    derived = type(module).forward is not nn.LayerNorm.forward
    if not derived or len(shape) != 4 or (shape[1],) != tuple(module.normalized_shape):
        return False
    known = next(module.parameters(), torch.empty(0))
    try:
        module.forward(known.new_zeros(1, shape[1], 1, shape[1] + 1))
    except RuntimeError:
        return False
    return True
