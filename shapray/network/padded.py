"""A step that fills up channels with zeros, as a layer that can be cut."""

import torch
from torch import Tensor, nn


class Padded(nn.Module):
    """Channels of zeros before and after others: (..., n, ...) -> (..., before + n + after, ...).

    The zeros are buffers, so that they belong to units and go with them like the entries of any
    parameter. Each has one more than is put out: a single number would be taken for no channel's.
    """

    before: Tensor
    after: Tensor

    def __init__(self, before: int, after: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("before", torch.zeros(before + 1), persistent=False)
        self.register_buffer("after", torch.zeros(after + 1), persistent=False)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._like(self.before, x), x, self._like(self.after, x)], self.dim)

    def _like(self, zeros: Tensor, x: Tensor) -> Tensor:
        zeros = zeros[1:].to(x).view([-1 if dim == self.dim else 1 for dim in range(x.ndim)])
        return zeros.expand([-1 if dim == self.dim else n for dim, n in enumerate(x.shape)])

    def extra_repr(self) -> str:
        return f"{len(self.before) - 1} before, {len(self.after) - 1} after, dim={self.dim}"
