"""The summed way into a tail: outputs of coalitions as sums of one contribution per unit.

Coalitions are one product with the contributions; along a permutation a step adds one contribution
to the sum so far; over all subsets a coalition's sum is the sum of two table rows. The consumer
itself runs once per image.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from shapray.engine.split import Entry, Split
from shapray.engine.tail import Tail
from shapray.shapley.coalitions import all_subsets
from shapray.shapley.upload import upload

LOW_BITS, MIDDLE_BITS = 8, 8  # players whose subset sums are tabulated in exact enumeration


class SummedGame:
    """Chains and subsets of the units of a flat group, on some images.

    Args:
        parts: the split network; its entries are not empty.
        tail: of `parts.summed`.
        sides: cached float32 values, per image.
        low_sides: the same in the tail's precision.
        n_players: units of the group.
        table_room: bytes that the contributions of the images in work may take.
    """

    def __init__(
        self,
        parts: Split,
        tail: Tail,
        sides: Sequence[Tensor],
        low_sides: Sequence[Tensor],
        n_players: int,
        table_room: int,
    ) -> None:
        self.entries, self.tail = parts.entries, tail
        self.sides, self.n_players = sides, n_players
        self.tail_sides = [low_sides[i] for i in parts.summed_sides]
        self.device = low_sides[0].device
        self.images_at_once = max(1, table_room // table_bytes(parts, n_players))

    def _contributions(self, images: slice) -> list[tuple[Tensor, Tensor]]:
        """Per entry, its value without any unit, and what each unit adds.

        Returns:
            (n_images, m) and (n_images, n_units, m), float32; m runs over height, width, channel.
        """
        found = []
        for entry in self.entries:
            source = self.sides[entry.source][images]
            others = source.index_fill(1, entry.channels.flatten(), 0.0)
            base = entry.consumer(others)
            for addend in entry.addends:
                base = base + self.sides[addend][images]
            found.append((_rows(base), _unit_contributions(entry, source)))
        return found

    def _run(self, sums: list[Tensor], sides: list[Tensor]) -> Tensor:
        """The tail, from the entries on. sums: (n_rows, m) per entry, overwritten."""
        entries = [
            _unrows(total, entry.shape) for total, entry in zip(sums, self.entries, strict=True)
        ]
        return self.tail(*entries, *sides)

    @torch.inference_mode()
    def along(
        self, images: Tensor, orders: Tensor, wanted: Tensor, n_rows: int, n_outputs: int
    ) -> Tensor:
        """See `Game.along`; `n_rows` coalitions go through the tail at once."""
        n_wanted = int(wanted.sum())
        place = torch.full(wanted.shape, -1)
        place[wanted] = torch.arange(n_wanted)
        found = torch.empty(n_wanted, n_outputs, device=self.device)
        for block in _image_blocks(images, self.images_at_once, n_rows):
            self._walk(images[block], orders[block], place[block], found, n_rows)
        return found

    def _walk(
        self, images: Tensor, orders: Tensor, place: Tensor, found: Tensor, n_rows: int
    ) -> None:
        """Walk along some chains, all at the same pace; the rows of `found` at `place` are set.

        A step adds one contribution per chain to the sums of the step before.

        Args:
            images: (n_chains,) int64, ascending.
            place: (n_chains, longest + 1) int64, row of each prefix in `found`, -1 if not wanted.
        """
        first, last = int(images[0]), int(images[-1]) + 1
        tables = self._contributions(slice(first, last))
        # Chains end after their last wanted prefix: the longest first, so that those that go on
        # are always the leading ones.
        steps = torch.arange(place.shape[1])
        length = (place >= 0).mul(steps).amax(1)
        order = length.argsort(descending=True, stable=True)
        images, orders, place, length = (
            images[order] - first,
            orders[order],
            place[order],
            length[order],
        )
        going = (length >= steps[:, None]).sum(1).tolist()  # chains, per step
        joining = upload((images[:, None] * self.n_players + orders.clamp(min=0)).T, self.device)
        of_chain = upload(images, self.device)
        buffers = [base.new_empty(n_rows, base.shape[1]) for base, _ in tables]
        sums = [base[of_chain] for base, _ in tables]
        batch: list[tuple[int, int]] = []  # (step, chains) in the buffers

        def flush() -> None:
            used = sum(n for _, n in batch)
            destination = torch.cat([place[:n, step] for step, n in batch])
            chains = torch.cat([torch.arange(n) for _, n in batch])
            rows = [buffer[:used] for buffer in buffers]
            if (destination < 0).any():
                chosen = (destination >= 0).nonzero()[:, 0]
                destination, chains = destination[chosen], chains[chosen]
                rows = [values[upload(chosen, self.device)] for values in rows]
            batch.clear()
            if len(destination) == 0:
                return
            if last - first == 1:
                sides = [s[first:last].expand(len(chains), *s.shape[1:]) for s in self.tail_sides]
            else:
                index = first + of_chain[upload(chains, self.device)]
                sides = [s[index] for s in self.tail_sides]
            found[upload(destination, self.device)] = self._run(rows, sides)

        used = 0
        for step, n in enumerate(going):
            if used + n > n_rows:
                sums = [total.clone() for total in sums]  # the tail overwrites the buffers
                flush()
                used = 0
            for i, (_, added) in enumerate(tables):
                now = buffers[i][used : used + n]
                if step == 0:
                    now.copy_(sums[i])
                else:
                    torch.index_select(added.flatten(0, 1), 0, joining[step - 1, :n], out=now)
                    now += sums[i][:n]
                sums[i] = now
            batch.append((step, n))
            used += n
        flush()

    @torch.inference_mode()
    def coalitions(self, images: Tensor, coalitions: Tensor, n_rows: int, n_outputs: int) -> Tensor:
        """See `Game.outputs`; `n_rows` coalitions go through the tail at once. An image's sums are
        a product of its coalitions with its contributions.

        Args:
            images: (n,) int64, on the host.
        """
        found = torch.empty(len(images), n_outputs, device=self.device)
        order = images.argsort(stable=True)
        images = images[order]
        place, index = upload(order, self.device), upload(images, self.device)
        coalitions = upload(coalitions, self.device)
        for block in _image_blocks(images, self.images_at_once, len(images)):
            first, last = int(images[block.start]), int(images[block.stop - 1]) + 1
            tables = self._contributions(slice(first, last))
            buffers = [base.new_empty(n_rows, base.shape[1]) for base, _ in tables]
            for begin in range(block.start, block.stop, n_rows):
                part = slice(begin, min(begin + n_rows, block.stop))
                kept = coalitions[place[part]].to(buffers[0].dtype)
                counts = torch.bincount(images[part] - first, minlength=last - first).tolist()
                for buffer, (base, added) in zip(buffers, tables, strict=True):
                    start = 0
                    for image, n in enumerate(counts):
                        if n:
                            end = start + n
                            torch.addmm(
                                base[image], kept[start:end], added[image], out=buffer[start:end]
                            )
                            start = end
                sides = [s[index[part]] for s in self.tail_sides]
                found[place[part]] = self._run([buffer[: len(kept)] for buffer in buffers], sides)
        return found

    @torch.inference_mode()
    def subsets(self, image: int, players: Tensor, n_rows: int) -> Iterator[Tensor]:
        """Outputs of every coalition of some players, in batches of at most `n_rows`.

        Yields:
            (n, n_outputs); over all, row i holds player j if bit j of i is set.
        """
        tables = self._contributions(slice(image, image + 1))
        low_bits = min(len(players), LOW_BITS, n_rows.bit_length() - 1)
        middle_bits = min(len(players) - low_bits, MIDDLE_BITS)
        low, middle, high = upload(players, self.device).split(
            [low_bits, middle_bits, len(players) - low_bits - middle_bits]
        )
        lows = [_subset_sums(added[0, low], torch.zeros_like(base[0])) for base, added in tables]
        buffers = [base.new_empty(n_rows, base.shape[1]) for base, _ in tables]
        sides = [s[image : image + 1] for s in self.tail_sides]
        at_once = n_rows >> low_bits
        for bits in all_subsets(len(high)):
            joined = upload(bits.nonzero()[:, 0], self.device)
            middles = [
                _subset_sums(added[0, middle], base[0] + added[0, high][joined].sum(0))
                for base, added in tables
            ]
            for start in range(0, 2**middle_bits, at_once):
                rows = []
                for buffer, low_sums, middle_sums in zip(buffers, lows, middles, strict=True):
                    part = middle_sums[start : start + at_once]
                    sums = buffer[: len(part) << low_bits]
                    torch.add(part[:, None], low_sums, out=sums.view(len(part), *low_sums.shape))
                    rows.append(sums)
                n = len(rows[0])
                yield self._run(rows, [s.expand(n, *s.shape[1:]) for s in sides])


def table_bytes(parts: Split, n_players: int) -> int:
    """Bytes of the contributions of one image."""
    return 4 * (n_players + 1) * sum(math.prod(entry.shape) for entry in parts.entries)


def _rows(tensor: Tensor) -> Tensor:
    """(n, c, h, w) or (n, c) -> (n, m), the channel running fastest."""
    return tensor.movedim(1, -1).reshape(len(tensor), -1)


def _unrows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(n, m) -> (n, *shape), channels-last in memory."""
    return rows.view(len(rows), *shape[1:], shape[0]).movedim(-1, 1)


def _unit_contributions(entry: Entry, source: Tensor) -> Tensor:
    """What each unit adds to a consumer's output: (n_images, n_units, m).

    Args:
        source: (n_images, n_channels, h, w) or (n_images, n_features), the consumer's input.
    """
    consumer, channels = entry.consumer, entry.channels
    n_units = len(channels)
    weight = consumer.weight[:, channels].movedim(0, -1)  # (n_units, n_channels, kh, kw, n_out)
    if isinstance(consumer, nn.Linear):
        return torch.einsum("bns,nso->bno", source[:, channels], weight)
    patches = nn.functional.unfold(
        source[:, channels.flatten()],
        consumer.kernel_size,
        consumer.dilation,
        consumer.padding,  # type: ignore[arg-type]  # a number: see split._entries
        consumer.stride,
    )  # (n_images, n_units * per_unit * kh * kw, n_positions)
    patches = patches.unflatten(1, (n_units, -1)).transpose(2, 3)
    return (patches @ weight.reshape(n_units, -1, weight.shape[-1])).flatten(2)


def _subset_sums(added: Tensor, start: Tensor) -> Tensor:
    """(2**k, m): entry i is `start` plus the rows j of added, (k, m), whose bit j of i is set."""
    sums = torch.empty(2 ** len(added), len(start), device=start.device, dtype=start.dtype)
    sums[0] = start
    for j, row in enumerate(added):
        torch.add(sums[: 2**j], row, out=sums[2**j : 2 ** (j + 1)])
    return sums


def _image_blocks(images: Tensor, images_at_once: int, rows: int) -> Iterator[slice]:
    """Runs of chains: whole images, as many as go at once, but no more chains than rows."""
    start = 0
    while start < len(images):
        last_image = images[start] + images_at_once
        stop = start + int((images[start:] < last_image).sum())
        stop = min(stop, start + rows)
        yield slice(start, stop)
        start = stop
