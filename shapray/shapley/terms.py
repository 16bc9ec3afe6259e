"""Sums over coalitions, each of which has a share in the Shapley values of all players."""

import numpy as np
import torch
from torch import Tensor


def mean_weights(n_players: int) -> np.ndarray:
    """What a number times the deviations of the players weighs, as a mean over the coalitions of
    each size 1 .. n_players - 1 (see `surrogate`)."""
    size = np.arange(1, n_players)
    return n_players / (size * (n_players - size))


class Terms:
    """Sums of numbers times the deviations of the players, over some images' coalitions."""

    def __init__(self, n_images: int, n_columns: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, n_images, n_columns, dtype=torch.float64, device=device)

    def add(self, numbers: Tensor, deviations: Tensor, names: Tensor) -> None:
        """Some coalitions more, time and again with other players.

        Args:
            numbers: (n_images, n_times, n) float32.
            deviations: (n_images, n, n_columns) float32.
            names: (n_images, n_times, n_columns) int64, the player that a column stands for.
        """
        both = torch.stack([numbers @ deviations, numbers.square() @ deviations.square()])
        names = names.expand_as(both)
        self.sums += torch.zeros_like(both).scatter_(3, names, both).sum(2)

    def moments(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and their variances, (n_images, n_columns) each; n: (n_images,) terms of each."""
        (total, squares), n = self.sums, n[:, None]
        return total, (squares - total**2 / n).clamp(min=0) * n / (n - 1)
