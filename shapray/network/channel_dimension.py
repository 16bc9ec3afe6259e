"""Where a layer's channels lie."""

from collections.abc import Sequence

from torch import nn

from shapray.network.reduced import Reduced


def channel_dimension(module: nn.Module, shape: Sequence[int]) -> int:
    """The dimension that channels lie along in what a layer reads or puts out, of this shape."""
    if isinstance(module, Reduced):
        return module.channel
    if isinstance(module, nn.Linear):
        return len(shape) - 1
    if isinstance(module, nn.LayerNorm) and shape[-1] == module.normalized_shape[-1]:
        return len(shape) - 1  # else a LayerNorm of images: it turns them for its own forward
    return 1 if len(shape) > 1 else 0
