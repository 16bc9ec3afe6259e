"""A mean, sum or extreme over channels, as a layer that can be told which of them count."""

import torch
from torch import Tensor, nn

KINDS = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax, "amin": torch.amin}
_NEUTRAL = {"amax": -torch.inf, "amin": torch.inf}  # 0 for the others


class Reduced(nn.Module):
    """Dimensions of an activation become one entry each, or go.

    Args:
        kind: of `KINDS`.
        dims: that are reduced, not negative.
        channel: that of them along which the channels lie.
        keepdim: whether they stay, with one entry.
    """

    def __init__(self, kind: str, dims: tuple[int, ...], channel: int, keepdim: bool) -> None:
        super().__init__()
        assert channel in dims, (channel, dims)
        self.kind, self.dims, self.channel, self.keepdim = kind, dims, channel, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return KINDS[self.kind](x, self.dims, keepdim=self.keepdim)  # type: ignore[operator]

    def of_kept(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same of those entries whose weight is not 0; 0 if there is none.

        Args:
            weight: in the shape of `x`, from 0 to 1; of an extreme all that is not 0 counts alike.
        """
        gone = weight == 0
        left = x.masked_fill(gone, _NEUTRAL.get(self.kind, 0.0))
        if self.kind in _NEUTRAL:
            return self.forward(left).masked_fill(gone.all(self.dims, self.keepdim), 0.0)
        total = (left * weight).sum(self.dims, keepdim=self.keepdim)
        if self.kind == "sum":
            return total
        n = weight.sum(self.dims, keepdim=self.keepdim)
        return total / n.masked_fill(n == 0, 1.0)

    def extra_repr(self) -> str:
        return f"{self.kind}, dims={self.dims}"
