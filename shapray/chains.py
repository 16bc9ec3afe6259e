"""Permutations of several images, evaluated together: each coalition of an image once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shapray.coalitions import antithetic_permutations, repeated
from shapray.game import Game, NonFiniteValue
from shapray.surrogate import ImageChains, corrected

OUTPUT_BYTES = 2**26  # of outputs that wait to become values
DOUBLE_ROWS = 2**12  # outputs that are in float64 at once


class Chains:
    """Permutations of some images, evaluated together, a few or all at a time.

    Args:
        game: the games.
        images: those to sample.
        n_chains: most permutations per image.
        seeds: of all the game's images.
        ends: (all images, 2) float64, values of nobody and everybody.
    """

    def __init__(
        self, game: Game, images: Sequence[int], n_chains: int, seeds: Sequence[int], ends: Tensor
    ) -> None:
        self.game, self.images, self.seeds, self.ends = game, images, seeds, ends
        self.players = [game.active[image].nonzero()[:, 0].numpy() for image in images]
        lengths = np.array([len(players) for players in self.players])
        shape = (len(images), n_chains, int(lengths.max()))
        self.orders = np.full(shape, -1)  # positions among the active players
        self.units = np.full(shape, -1)
        for row, (image, k) in enumerate(zip(images, lengths, strict=True)):
            self.orders[row, :, :k] = antithetic_permutations(k, n_chains, seeds[image])
            self.units[row, :, :k] = self.players[row][self.orders[row, :, :k]]

        # Each coalition of an image is evaluated once, the first time that a chain meets it.
        of_chain = np.repeat(np.arange(len(images)), n_chains)
        first = repeated(self.units.reshape(len(of_chain), shape[2]), of_chain)
        own = np.arange(first.size).reshape(first.shape)
        step = np.arange(shape[2] + 1)
        end = lengths[of_chain][:, None]
        inner = (step > 0) & (step < end)
        n_steps = shape[2] + 1
        self.wanted = torch.from_numpy((first == own) & inner).view(*shape[:2], n_steps)
        device = game.reference.device
        self.source = torch.from_numpy(np.where(inner, first, own)).flatten().to(device)
        # all prefixes from a chain's end on are the full coalition
        full = torch.from_numpy(step >= lengths[:, None]).to(device)  # (n_images, n_steps)

        index = torch.tensor(images, device=device)
        first_values, last_values = ends.to(device)[index].unbind(1)
        self.values = _between(first_values[:, None], last_values[:, None], full, n_chains)[..., 0]
        # Only what the surrogate takes of the outputs is kept: with many classes that is little.
        self.stand_in = game.surrogate()
        if self.stand_in is not None:
            pool = self.stand_in[1]
            nobody, everybody = game.reference[index].double().unbind(1)
            self.outputs = _between(pool(index, nobody), pool(index, everybody), full, n_chains)
        self.n_done = 0

    def extend(self, n_chains: int) -> None:
        """Evaluate permutations up to the given number per image, as many at a time as their
        outputs have room.

        Raises:
            NonFiniteValue: with the coalition.
        """
        n_outputs = self.game.reference.shape[2]
        step = max(1, OUTPUT_BYTES // (4 * n_outputs * self.wanted.shape[2] * len(self.images)))
        while self.n_done < n_chains:
            self._extend(min(n_chains, self.n_done + step))

    def _extend(self, n_chains: int) -> None:
        new = slice(self.n_done, n_chains)
        units = torch.from_numpy(self.units[:, new]).flatten(0, 1)
        index = torch.tensor(self.images).repeat_interleave(n_chains - self.n_done)
        wanted = self.wanted[:, new]
        found = self.game.along(index, units, wanted.flatten(0, 1))
        rows = index.repeat_interleave(wanted.flatten(0, 1).sum(1)).to(found.device)
        places = wanted.to(found.device)
        parts = list(zip(rows.split(DOUBLE_ROWS), found.split(DOUBLE_ROWS), strict=True))
        self.values = self._filled(
            self.values, new, places, [self.game.value(r, part.double()) for r, part in parts]
        )
        if self.stand_in is not None:
            pool = self.stand_in[1]
            self.outputs = self._filled(
                self.outputs, new, places, [pool(r, part.double()) for r, part in parts]
            )
        values = self.values[:, new]
        if not values.isfinite().all():
            row, chain, step = (~values.isfinite()).nonzero()[0].tolist()
            kept = self.units[row, self.n_done + chain, :step].tolist()
            raise NonFiniteValue(self.images[row], sorted(kept), values[row, chain, step].item())
        self.n_done = n_chains

    def _filled(self, table: Tensor, new: slice, places: Tensor, found: list[Tensor]) -> Tensor:
        """A table, (n_images, n_chains, n_steps[, n]), with what was found in its new places, and
        from there wherever else the same coalition is met."""
        part = table[:, new]
        part[places] = torch.cat(found) if found else part.new_empty(0, *part.shape[3:])
        table[:, new] = part
        return table.flatten(0, 2)[self.source].view(table.shape)

    def estimates(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Shapley values of the images, from the permutations evaluated so far.

        Returns:
            per image, values and standard errors, (n_players,) float64; both 0 for null players.
        """
        rows = [row for row, players in enumerate(self.players) if len(players)]
        found = [np.zeros((2, self.game.n_players)) for _ in self.players]
        for row, (mean, error) in zip(
            rows, corrected([self._of_row(r) for r in rows]), strict=True
        ):
            found[row][:, self.players[row]] = torch.stack([mean, error]).cpu().numpy()
        return [(mean, error) for mean, error in found]

    def _of_row(self, row: int) -> ImageChains:
        image, k = self.images[row], len(self.players[row])
        done, steps = slice(0, self.n_done), slice(0, k + 1)
        outputs, value = None, None
        if self.stand_in is not None:
            outputs, value = self.outputs[row, done, steps], _of_image(self.stand_in[0], image)
        return ImageChains(
            orders=torch.from_numpy(self.orders[row, done, :k]).to(self.values.device),
            values=self.values[row, done, steps],
            outputs=outputs,
            value=value,
            seed=self.seeds[image] ^ 1,  # another stream: Philox keys need only differ
        )

    def n_evaluations(self, row: int) -> int:
        """Coalitions whose value was computed for the image in a row, both ends included."""
        return int(self.wanted[row, : self.n_done].sum()) + 2


def _between(first: Tensor, last: Tensor, full: Tensor, n_chains: int) -> Tensor:
    """Chains that know their ends only.

    Args:
        first, last: (n_images, n), with nobody and with everybody.
        full: (n_images, n_steps) bool, the steps at which everybody has joined.
    Returns:
        (n_images, n_chains, n_steps, n).
    """
    table = torch.where(full[:, :, None], last[:, None], first[:, None])
    return table[:, None].repeat(1, n_chains, 1, 1)


def _of_image(value: Callable[[Tensor, Tensor], Tensor], image: int) -> Callable[[Tensor], Tensor]:
    def of_outputs(outputs: Tensor) -> Tensor:
        return value(torch.full((len(outputs),), image, device=outputs.device), outputs)

    return of_outputs
