"""The summed way into a tail: outputs of coalitions as sums of one contribution per unit.

Coalitions are one product with the contributions; along a permutation a step adds one contribution
to the sum so far; over all subsets a coalition's sum is the sum of two table rows. The consumer
itself runs once per image.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shapray.engine.contributions import Contributions, values
from shapray.engine.split import Split
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

    Attributes:
        multiplied: whether `coalitions` is quicker than the masked way.
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
        self.entries, self.multiplied, self.tail = parts.entries, parts.multiplied, tail
        self.sides, self.n_players = sides, n_players
        self.tail_sides = [low_sides[i] for i in parts.summed_sides]
        self.device = low_sides[0].device
        self.images_at_once = max(1, table_room // table_bytes(parts, n_players))

    def _contributions(self, images: slice) -> list[Contributions]:
        return [Contributions(entry, self.sides, images) for entry in self.entries]

    def _run(self, sums: list[Tensor], sides: list[Tensor]) -> Tensor:
        """The tail, from the entries on. sums: (n_rows, m) per entry, overwritten."""
        entries = [values(total, entry) for total, entry in zip(sums, self.entries, strict=True)]
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
        rows_of = [t.rows(images, orders.clamp(min=0).T) for t in tables]  # (longest, n_chains)
        of_chain = upload(images, self.device)
        buffers = [table.buffer(n_rows) for table in tables]
        sums = [table.base[of_chain] for table in tables]
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
            for i, table in enumerate(tables):
                now = buffers[i][used : used + n]
                if step == 0:
                    now.copy_(sums[i])
                else:
                    table.joined(sums[i][:n], rows_of[i][step - 1, :n], now)
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
            buffers = [table.buffer(n_rows) for table in tables]
            for begin in range(block.start, block.stop, n_rows):
                part = slice(begin, min(begin + n_rows, block.stop))
                kept = coalitions[place[part]].to(buffers[0].dtype)
                counts = torch.bincount(images[part] - first, minlength=last - first).tolist()
                for buffer, table in zip(buffers, tables, strict=True):
                    start = 0
                    for image, n in enumerate(counts):
                        if n:
                            end = start + n
                            table.product(image, kept[start:end], buffer[start:end])
                            start = end
                sides = [s[index[part]] for s in self.tail_sides]
                found[place[part]] = self._run([buffer[: len(kept)] for buffer in buffers], sides)
        return found

    @torch.inference_mode()
    def subsets(self, image: int, players: Tensor, n_rows: int) -> Iterator[Tensor]:
        """Outputs of every coalition of some players, in batches of at most `n_rows`.

        Yields:
            (n, n_outputs); over all, row i holds player j if bit j of i is set. It may be
            overwritten by the next.
        """
        tables = self._contributions(slice(image, image + 1))
        low_bits = min(len(players), LOW_BITS, n_rows.bit_length() - 1)
        middle_bits = min(len(players) - low_bits, MIDDLE_BITS)
        low, middle, high = players.split(
            [low_bits, middle_bits, len(players) - low_bits - middle_bits]
        )
        lows = [t.of_subsets(low, torch.zeros_like(t.base[0])) for t in tables]
        buffers = [table.buffer(n_rows) for table in tables]
        sides = [s[image : image + 1] for s in self.tail_sides]
        at_once = n_rows >> low_bits
        for bits in all_subsets(len(high)):
            middles = [t.of_subsets(middle, t.of_all(high[bits])) for t in tables]
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
    """Bytes of the contributions of one image, and of the sum without any."""
    return 4 * sum(e.unit_numbers * (n_players + len(e.units)) for e in parts.entries)


def _image_blocks(images: Tensor, images_at_once: int, rows: int) -> Iterator[slice]:
    """Runs of chains: whole images, as many as go at once, but no more chains than rows."""
    start = 0
    while start < len(images):
        last_image = images[start] + images_at_once
        stop = start + int((images[start:] < last_image).sum())
        stop = min(stop, start + rows)
        yield slice(start, stop)
        start = stop
