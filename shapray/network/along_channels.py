"""A convolution along the channels, which looks at neighbours, as a layer that can be cut."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AlongChannels(nn.Module):
    """A `Conv1d` whose space are channels, (..., n_channels) -> the same (efficient channel
    attention, Wang et al. 2020). Those that are gone are zeros in their places, so that the others
    keep their distances.

    It takes the layer's place, its name and its parameters, none of which goes with a channel.

    Args:
        layer: of stride 1, padded with zeros to as many entries as it reads.
    """

    places: Tensor

    def __init__(self, layer: nn.Conv1d, n_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.settings = {n: getattr(layer, n) for n in ("padding", "dilation", "groups")}
        self.n_channels = n_channels
        self.register_buffer("places", torch.arange(n_channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_zeros(*x.shape[:-1], self.n_channels).index_copy(-1, self.places, x)
        whole = F.conv1d(whole, self.weight, self.bias, **self.settings)
        return whole.index_select(-1, self.places)

    def of_kept(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same with channels of which less counts, from 0 to 1; `weight` has the shape of
        `x`."""
        return self.forward(x.masked_fill(weight == 0, 0.0) * weight)

    def extra_repr(self) -> str:
        return f"{len(self.places)} of {self.n_channels}, kernel_size={self.weight.shape[-1]}"
