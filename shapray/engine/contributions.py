"""What each unit adds to a consumer's outputs, and sums of that."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapray.engine.entries import Entry
from shapray.shapley.upload import upload


class Contributions:
    """Those of a group's units to one consumer's outputs, for some images.

    Args:
        entry: into the tail, that the outputs are for.
        sides: cached float32 values, per image.
        images: those in work.

    Attributes:
        base: (n_images, m) float32, the sum without any unit. m runs over blocks, height, width and
            the channels of a block.
    """

    def __init__(self, entry: Entry, sides: Sequence[Tensor], images: slice) -> None:
        source = sides[entry.source][images]
        base = entry.consumer(source.index_fill(entry.channel, entry.channels.flatten(), 0.0))
        for addend in entry.addends:
            base = base + sides[addend][images]
        self.base = _rows(base, entry)
        self._place = entry.units.flatten().argsort()  # a unit's, block after block
        self._units = upload(entry.units, self.base.device)
        self._added = _added(entry, source)  # (n_images, n_units there, m // n_blocks)

    def buffer(self, n: int) -> Tensor:
        """Room for so many sums: (n, m)."""
        return self.base.new_empty(n, self.base.shape[1])

    def rows(self, images: Tensor, units: Tensor) -> Tensor:
        """Where contributions lie, for `joined`.

        Args:
            images: int64, of those in work; on the host.
            units: int64, to be broadcast to them; on the host.
        Returns:
            on the device.
        """
        return upload(images * len(self._place) + self._place[units], self.base.device)

    def joined(self, sums: Tensor, rows: Tensor, out: Tensor) -> None:
        """Add a contribution to each sum.

        Args:
            sums: (n, m).
            rows: (n,), from `rows`.
            out: (n, m).
        """
        added = self._added.flatten(0, 1)
        if len(self._units) == 1:
            torch.index_select(added, 0, rows, out=out)
            out += sums
            return
        out.copy_(sums)
        block = rows % len(self._place) // self._units.shape[1]
        first = torch.arange(0, len(rows) * len(self._units), len(self._units), device=rows.device)
        out.view(-1, added.shape[1]).index_add_(0, first + block, added[rows])

    def product(self, image: int, kept: Tensor, out: Tensor) -> None:
        """Sums of coalitions.

        Args:
            kept: (n, n_units) of 0 and 1, float32.
            out: (n, m).
        """
        of_blocks = len(self._units), -1, self._added.shape[2]
        torch.baddbmm(
            self.base[image].view(of_blocks),
            kept[:, self._units].transpose(0, 1),
            self._added[image].view(of_blocks),
            out=out.view(len(out), len(self._units), -1).transpose(0, 1),
        )

    def of_all(self, units: Tensor) -> Tensor:
        """(m,): the sum of some units, for the first image. units: (k,), on the host."""
        place = upload(self._place[units], self.base.device)
        total = self.base[0].view(len(self._units), -1)
        return total.index_add(0, place // self._units.shape[1], self._added[0, place]).flatten()

    def of_subsets(self, units: Tensor, start: Tensor) -> Tensor:
        """(2**k, m): entry i is `start` plus what those units j add, to the first image, whose bit
        j of i is set. units: (k,), on the host."""
        sums = start.new_empty(2 ** len(units), len(self._units), self._added.shape[2])
        sums[0] = start.view(sums.shape[1:])
        for j, place in enumerate(self._place[units].tolist()):
            half = sums[2**j : 2 ** (j + 1)]
            half.copy_(sums[: 2**j])
            half[:, place // self._units.shape[1]] += self._added[0, place]
        return sums.flatten(1)


def values(sums: Tensor, entry: Entry) -> Tensor:
    """(n, m) -> (n, *entry.shape), channels last in memory."""
    pixels = [size for dim, size in enumerate(entry.shape, 1) if dim != entry.channel]
    blocks = sums.view(len(sums), len(entry.units), *pixels, -1)
    return blocks.movedim(1, -2).flatten(-2).movedim(-1, entry.channel)


def _rows(values: Tensor, entry: Entry) -> Tensor:
    """The inverse of `values`."""
    blocks = values.movedim(entry.channel, -1).unflatten(-1, (len(entry.units), -1))
    return blocks.movedim(-2, 1).reshape(len(values), -1)


def _added(entry: Entry, source: Tensor) -> Tensor:
    """(n_images, n_units, m // n_blocks), the units block after block.

    Args:
        source: the consumer's input.
    """
    consumer, channels = entry.consumer, entry.channels
    # (n_channels, kernel height, width, outputs of the channel's block)
    weight = consumer.weight.unflatten(0, (len(entry.units), -1)).movedim(1, -1).flatten(0, 1)
    weight = weight[channels].flatten(1, -2)  # (n_units, channels_per_unit * kernel, outputs)
    if isinstance(consumer, nn.Linear):
        read = source[..., channels].reshape(len(source), -1, *channels.shape)  # (b, positions, ..)
        return torch.einsum("bpns,nso->bnpo", read, weight).flatten(2)
    patches = nn.functional.unfold(
        source[:, channels.flatten()],
        consumer.kernel_size,
        consumer.dilation,
        consumer.padding,  # type: ignore[arg-type]  # a number: see `entries.is_plain`
        consumer.stride,
    )  # (n_images, n_units * channels_per_unit * kernel, n_positions)
    patches = patches.unflatten(1, (len(channels), -1)).transpose(2, 3)
    return (patches @ weight).flatten(2)
