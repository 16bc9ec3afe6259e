"""Permutations of several images, evaluated together: each coalition of an image once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.coalitions import antithetic_permutations, repeated
from shapray.shapley.game import DOUBLE_ROWS, OUTPUT_BYTES, Game, check_finite
from shapray.shapley.upload import upload


def marginals(orders: Tensor, prefix_values: Tensor) -> Tensor:
    """Marginal contribution of each player along permutations.

    Args:
        orders: (n_chains, k) int64, the player that joins at each step.
        prefix_values: (n_chains, k + 1), value of each prefix, the empty one first.
    Returns:
        (n_chains, k) in player order; a row sums to value(all) - value(none).
    Source: Castro et al. 2009, ApproShapley.
    """
    return torch.zeros_like(prefix_values[:, 1:]).scatter_(1, orders, prefix_values.diff(dim=1))


class Permutations:
    """Permutations of some images, evaluated together.

    Args:
        game: the games.
        images: those to sample.
        n_chains: most permutations per image.
        seeds: of all the game's images.
        ends: (all images, 2) float64, values of the empty and the full coalition.
    """

    sampling = "permutations"

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
        self.source = upload(torch.from_numpy(np.where(inner, first, own)).flatten(), device)
        # all prefixes from a chain's end on are the full coalition
        full = upload(torch.from_numpy(step >= lengths[:, None]), device)  # (n_images, n_steps)
        first_values, last_values = upload(ends[list(images)], device).split(1, dim=1)
        self.values = torch.where(full, last_values, first_values)[:, None].repeat(1, n_chains, 1)
        self.n_permutations, self.n_done = n_chains, 0

    def evaluate(self) -> None:
        """Evaluate what was drawn, as many permutations at a time as their outputs have room.

        Raises:
            NonFiniteValue: with the coalition.
        """
        n_chains, n_outputs = self.wanted.shape[1], self.game.reference.shape[2]
        step = max(1, OUTPUT_BYTES // (4 * n_outputs * self.wanted.shape[2] * len(self.images)))
        while self.n_done < n_chains:
            self._extend(min(n_chains, self.n_done + step))

    def _extend(self, n_chains: int) -> None:
        new = slice(self.n_done, n_chains)
        units = torch.from_numpy(self.units[:, new]).flatten(0, 1)
        index = torch.tensor(self.images).repeat_interleave(n_chains - self.n_done)
        wanted = self.wanted[:, new]
        found = self.game.along(index, units, wanted.flatten(0, 1))
        rows = upload(index.repeat_interleave(wanted.flatten(0, 1).sum(1)), found.device)
        places = torch.arange(self.wanted.numel()).view(self.wanted.shape)[:, new][wanted]
        parts = zip(rows.split(DOUBLE_ROWS), found.split(DOUBLE_ROWS), strict=True)
        values = [self.game.value(r, part.double()) for r, part in parts]
        if values:
            self.values.view(-1)[upload(places, found.device)] = torch.cat(values)
        # and wherever else the same coalition is met
        self.values = self.values.flatten()[self.source].view(self.values.shape)
        fresh = self.values[:, new]

        def of(place: int) -> tuple[int, list[int]]:
            row, chain, step = map(int, np.unravel_index(place, tuple(fresh.shape)))
            kept = self.units[row, self.n_done + chain, :step].tolist()
            return self.images[row], sorted(kept)

        check_finite(fresh, of)
        self.n_done = n_chains

    def estimates(self) -> list[np.ndarray]:
        """Shapley values of the images' players, from the permutations evaluated so far.

        Returns:
            (2, k) float64 for each image, values and standard errors; these are NaN from a single
            pair.
        """
        return [self._estimate(row).cpu().numpy() for row in range(len(self.images))]

    def _estimate(self, row: int) -> Tensor:
        k = len(self.players[row])
        if k == 0:
            return self.values.new_zeros(2, 0)
        orders = upload(torch.from_numpy(self.orders[row, : self.n_done, :k]), self.values.device)
        found = marginals(orders, self.values[row, : self.n_done, : k + 1])
        pairs = found.unflatten(0, (-1, 2)).mean(1)  # the pair is the sample
        if len(pairs) == 1:
            return torch.stack([pairs[0], torch.full_like(pairs[0], torch.nan)])
        return torch.stack([pairs.mean(0), (pairs.var(0) / len(pairs)).sqrt()])

    def n_evaluations(self, row: int) -> int:
        """Coalitions whose value was computed for the image in a row, both ends included."""
        return int(self.wanted[row, : self.n_done].sum()) + 2
