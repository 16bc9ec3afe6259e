"""A game whose coalitions cost next to nothing, in place of a network's."""

import math
from typing import Any

import torch
from torch import Tensor

from shapray.shapley.game import Game


class StandIn(Game):
    """A game that knows its outputs without its network: what its estimates cost is the work
    around the network.

    Args:
        game: whose players, active units, value and surrogate it has.
    """

    def __init__(self, game: Game) -> None:
        self.game, self.n_players, self.active = game, game.n_players, game.active
        self.none = game.reference[:, 0]
        random = torch.Generator().manual_seed(0)
        effects = torch.randn(self.n_players, self.none.shape[1], generator=random)
        self.effects = (effects / math.sqrt(self.n_players)).to(self.none)
        every = self.outputs(torch.arange(len(self.active)), self.active)
        self.reference = torch.stack([self.none, every], 1)

    def _grown(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """Effects grow with the coalition: the game is not additive, and a surrogate can fit it."""
        return sums * (1 + sizes / self.n_players)

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        kept = coalitions.to(self.effects)
        sums = self._grown(kept @ self.effects, kept.sum(1, keepdim=True))
        return self.none[images.to(kept.device)] + sums

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        device = self.effects.device
        wanted, steps = wanted.to(device), torch.arange(orders.shape[1] + 1, device=device)
        sums = self.effects[orders.clamp(min=0).to(device)].cumsum(1)
        sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
        return (self.none[images.to(device), None] + self._grown(sums, steps[:, None]))[wanted]

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.game.value(images, outputs)

    def surrogate(self) -> tuple[Any, Any] | None:
        return self.game.surrogate()
