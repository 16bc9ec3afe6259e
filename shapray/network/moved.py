"""A step that moves channels, as a layer that can be cut."""

from torch import Tensor, nn


class Moved(nn.Module):
    """Channels by their indices: (..., n_channels, ...) -> (..., len(index), ...) along `dim`."""

    index: Tensor

    def __init__(self, index: Tensor, dim: int, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.dim, self.n_channels = dim, n_channels

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.index)

    def cut(self, stays: Tensor) -> None:
        """Read fewer channels, in place.

        Args:
            stays: (n_channels,) bool, of those that it has read.
        """
        new_place = stays.cumsum(0) - 1
        index = self.index.cpu()
        self.index = new_place[index[stays[index]]].to(self.index.device)
        self.n_channels = int(stays.sum())

    def extra_repr(self) -> str:
        return f"{self.n_channels} -> {len(self.index)}, dim={self.dim}"
