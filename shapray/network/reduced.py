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

    def of_kept(self, x: Tensor, stays: Tensor) -> Tensor:
        """The same of those entries that stay: bool, in the shape of `x`; 0 if none does."""
        n = stays.sum(self.dims, keepdim=self.keepdim)
        left = x.masked_fill(~stays, _NEUTRAL.get(self.kind, 0.0))
        if self.kind == "mean":
            return left.sum(self.dims, keepdim=self.keepdim) / n.clamp(min=1).to(x.dtype)
        return self.forward(left).masked_fill(n == 0, 0.0)

    def extra_repr(self) -> str:
        return f"{self.kind}, dims={self.dims}"
