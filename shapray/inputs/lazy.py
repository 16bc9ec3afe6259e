"""Images that need not all be in memory at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from shapray.inputs.images import ImageSet


class LazyImages:
    """Some images of a set in an order of their own, like a tensor of them: read when asked for,
    and kept as long as there is room.

    Args:
        images: the set.
        order: (n,) int64, which of them.
        device: where they are wanted, and kept.
        room: bytes for those that are kept; the others are read each time.
    """

    def __init__(
        self, images: ImageSet, order: Tensor, device: str | torch.device, room: int
    ) -> None:
        self.device = torch.device(device)
        self._images, self._order, self._room = images, order, room
        self._kept: dict[int, Tensor] = {}

    def first(self, n: int) -> "LazyImages":
        """As many of them; what one of the two reads the other has."""
        return self.some(torch.arange(len(self))[:n])

    def some(self, which: Tensor) -> "LazyImages":
        """Those at some places in the order, (n,) int64, in that order; they share what is read."""
        some = LazyImages(self._images, self._order[which], self.device, self._room)
        some._kept = self._kept
        return some

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """A copy of some, at least one: (n, channels, height, width) float32."""
        places = self._order[which if isinstance(which, slice) else which.cpu()]
        return torch.stack([self._image(place) for place in places.tolist()])

    def split(self, n: int) -> Iterator[Tensor]:
        """All of them, `n` at a time."""
        return (self[first : first + n] for first in range(0, len(self), n))

    def _image(self, place: int) -> Tensor:
        if place in self._kept:
            return self._kept[place]
        [image] = self._images.load(place, place + 1).to(self.device)
        if image.nbytes * (len(self._kept) + 1) <= self._room:
            self._kept[place] = image
        return image


Pixels = Tensor | LazyImages  # (n, channels, height, width) float32
