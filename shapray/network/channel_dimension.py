"""Where a layer's channels lie."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from shapray.network.along_channels import AlongChannels
from shapray.network.reduced import Reduced

# what norms have answered, by the number of dimensions; see `_turns`
_TURNS: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


def channel_dimension(module: nn.Module, shape: Sequence[int]) -> int:
    """The dimension that channels lie along in what a layer reads or puts out, of this shape."""
    if isinstance(module, Reduced):
        return module.channel
    if isinstance(module, nn.Linear | AlongChannels):
        return len(shape) - 1
    if isinstance(module, nn.LayerNorm) and not _turns(module, len(shape)):
        return len(shape) - 1
    return 1 if len(shape) > 1 else 0


def _turns(norm: nn.LayerNorm, n_dims: int) -> bool:
    """Whether a LayerNorm of a class derived from PyTorch's has the channels of images in their
    place, dimension 1, and turns them for its own forward.

    It is asked with an image that has as many channels as the norm, and another height and width:
    by what it is given in a network this could not be told, its images may be as wide as deep.
    """
    if n_dims < 3 or type(norm).forward is nn.LayerNorm.forward:
        return False
    answers = _TURNS.setdefault(norm, {})
    if n_dims not in answers:
        n_channels = norm.normalized_shape[-1]
        size = 3 if n_channels == 2 else 2
        like = next(norm.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                norm.forward(like.new_zeros(1, n_channels, *[size] * (n_dims - 2)))
            answers[n_dims] = True
        except Exception:  # it normalises the last dimension, which has another size
            answers[n_dims] = False
    return answers[n_dims]
