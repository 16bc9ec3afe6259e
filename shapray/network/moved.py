"""A step that moves channels, as a layer that can be cut."""

import torch
from torch import Tensor, nn


class Moved(nn.Module):
    """Channels by their indices: (..., n_channels, ...) -> (..., len(index), ...) along `dim`; of
    index -1 a channel of zeros."""

    index: Tensor

    def __init__(self, index: Tensor, dim: int, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.dim, self.n_channels = dim, n_channels

    def forward(self, x: Tensor) -> Tensor:
        picked = x.index_select(self.dim, self.index.clamp(min=0))
        if bool((self.index >= 0).all()):
            return picked
        shape = [-1 if dim == self.dim else 1 for dim in range(x.ndim)]
        return picked.masked_fill((self.index < 0).view(shape), 0.0)

    def cut(self, stays: Tensor, needed: Tensor) -> None:
        """Read fewer channels and put out fewer, in place.

        Args:
            stays: (n_channels,) bool, of those that it has read.
            needed: (len(index),) bool, of those that it has put out.
        """
        index = self.index.cpu()[needed]
        new_place = torch.where(stays, stays.cumsum(0) - 1, -1)
        self.index = torch.where(index < 0, -1, new_place[index]).to(self.index.device)
        self.n_channels = int(stays.sum())

    def extra_repr(self) -> str:
        return f"{self.n_channels} -> {len(self.index)}, dim={self.dim}"
