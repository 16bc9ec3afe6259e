"""Norms and means over channels, of those that are kept: in the mask what they are in the cut.

A LayerNorm, or a GroupNorm of one group, subtracts a mean over channels and divides by their
deviation. With some channels removed these are over the others; to read zeros in their place would
be another network. A convolution along the channels reads zeros where they were.
"""

import torch
from torch import Tensor, nn

from shapray.network.along_channels import AlongChannels
from shapray.network.channel_dimension import channel_dimension
from shapray.network.reduced import Reduced


def is_over_channels(module: nn.Module) -> bool:
    """Whether what a layer puts out for a channel depends on all channels of its input."""
    if isinstance(module, Reduced | AlongChannels):
        return True
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1
    return isinstance(module, nn.GroupNorm) and module.num_groups == 1


class KeptNorm(nn.Module):
    """A norm over channels, some of which do not count.

    Args:
        norm: of which `is_over_channels`.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm, nn.LayerNorm | nn.GroupNorm | Reduced | AlongChannels)
        assert is_over_channels(norm)
        self.norm = norm

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """What the norm makes of the kept channels; those that are not kept are not to be read.

        Args:
            x: as the norm takes it.
            kept: 1 for a channel that counts, 0 for one that does not, in between for what counts
                in part; to be broadcast to `x`.
        """
        channel = channel_dimension(self.norm, x.shape)
        weight = kept.to(x.dtype).expand(x.shape)
        if isinstance(self.norm, Reduced | AlongChannels):
            return self.norm.of_kept(x, weight)
        dims = [channel] if isinstance(self.norm, nn.LayerNorm) else list(range(1, x.ndim))
        gone = weight == 0  # not a product: 0 * inf would be nan
        n = weight.sum(dims, keepdim=True)
        n = n.masked_fill(n == 0, 1.0)  # of none nothing is read
        mean = (x.masked_fill(gone, 0.0) * weight).sum(dims, keepdim=True) / n
        centred = x - mean
        squares = centred.masked_fill(gone, 0.0).square() * weight
        spread = squares.sum(dims, keepdim=True) / n
        normed = centred * (spread + self.norm.eps).rsqrt()
        shape = [-1 if d == channel else 1 for d in range(x.ndim)]
        if self.norm.weight is not None:
            normed = normed * self.norm.weight.view(shape)
        if self.norm.bias is not None:
            normed = normed + self.norm.bias.view(shape)
        return normed


class AlwaysKept(KeptNorm):
    """The same with the same channels for every image.

    Args:
        kept: (n_channels,) bool.
    """

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__(norm)
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        channel = channel_dimension(self.norm, x.shape)
        shape = [-1 if d == channel else 1 for d in range(x.ndim)]
        return super().forward(x, torch.as_tensor(self.kept).view(shape).to(x.device))
