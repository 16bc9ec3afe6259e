"""A mean, sum, extreme, length or deviation over channels, as a layer that can be told which of
them count."""

import math

import torch
from torch import Tensor, nn

KINDS = ("mean", "sum", "amax", "amin", "norm", "var", "std")
_NEUTRAL = {"amax": -torch.inf, "amin": torch.inf}  # 0 for the others


class Reduced(nn.Module):
    """Dimensions of an activation become one entry each, or go.

    Args:
        kind: of `KINDS`; a norm is the Euclidean one.
        dims: that are reduced, not negative.
        channel: that of them along which the channels lie.
        keepdim: whether they stay, with one entry.
        correction: of a variance or deviation, which is divided by so many entries less; not by
            less than one.
    """

    def __init__(
        self, kind: str, dims: tuple[int, ...], channel: int, keepdim: bool, correction: float = 0
    ) -> None:
        super().__init__()
        assert kind in KINDS, kind
        assert channel in dims, (channel, dims)
        self.kind, self.dims, self.channel, self.keepdim = kind, dims, channel, keepdim
        self.correction = correction

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "norm":
            return torch.linalg.vector_norm(x, 2, self.dims, self.keepdim)
        if self.kind in ("var", "std"):
            n = math.prod(x.shape[dim] for dim in self.dims)
            correction = self.correction if n > self.correction else n - 1
            spread = torch.var if self.kind == "var" else torch.std
            return spread(x, self.dims, correction=correction, keepdim=self.keepdim)
        reduced: Tensor = getattr(torch, self.kind)(x, self.dims, keepdim=self.keepdim)
        return reduced

    def of_kept(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same of those entries whose weight is not 0; 0 if there is none.

        Args:
            weight: in the shape of `x`, from 0 to 1; of an extreme all that is not 0 counts alike.
        """
        gone = weight == 0
        left = x.masked_fill(gone, _NEUTRAL.get(self.kind, 0.0))
        if self.kind in _NEUTRAL:
            return self.forward(left).masked_fill(gone.all(self.dims, self.keepdim), 0.0)
        if self.kind == "sum":
            return self._total(left * weight)
        if self.kind == "norm":
            return _root(self._total(left.square() * weight))
        if self.kind == "mean":
            return self._mean(left, weight, self.keepdim)
        centred = (x - self._mean(left, weight, keepdim=True)).masked_fill(gone, 0.0)
        n = self._total(weight) - self.correction
        spread = self._total(centred.square() * weight) / n.masked_fill(n <= 0, 1.0)
        return _root(spread) if self.kind == "std" else spread

    def _mean(self, left: Tensor, weight: Tensor, keepdim: bool) -> Tensor:
        n = weight.sum(self.dims, keepdim=keepdim)
        return (left * weight).sum(self.dims, keepdim=keepdim) / n.masked_fill(n == 0, 1.0)

    def _total(self, entries: Tensor) -> Tensor:
        return entries.sum(self.dims, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        return f"{self.kind}, dims={self.dims}"


def _root(squares: Tensor) -> Tensor:
    """Square roots with a gradient of 0 at 0, as PyTorch's norms have."""
    zero = squares == 0
    return squares.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
