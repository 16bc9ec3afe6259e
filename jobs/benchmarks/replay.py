"""A game that remembers its chains, to estimate twice from the same evaluations."""

import hashlib
from collections.abc import Callable

from torch import Tensor

from shapray.game import Game


class ReplayedGame(Game):
    """The same game with or without its surrogate.

    Args:
        game: any.
        use_surrogate: False leaves plain antithetic permutations.
        memory: outputs of chains that were walked before; two games that share it and are given
            the same permutations evaluate them once. None: nothing is remembered.
    """

    def __init__(
        self, game: Game, use_surrogate: bool, memory: dict[bytes, Tensor] | None = None
    ) -> None:
        self.game, self.use_surrogate, self.memory = game, use_surrogate, memory
        self.n_players, self.active, self.reference = game.n_players, game.active, game.reference

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        return self.game.outputs(images, coalitions)

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.game.value(images, outputs)

    def surrogate(self) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable] | None:
        return self.game.surrogate() if self.use_surrogate else None

    def subset_values(self, image: int, players: Tensor) -> Tensor:
        return self.game.subset_values(image, players)

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        if self.memory is None:
            return self.game.along(images, orders, wanted)
        parts = [tensor.numpy().tobytes() for tensor in (images, orders, wanted)]
        key = hashlib.sha256(b"".join(parts)).digest()
        if key not in self.memory:
            self.memory[key] = self.game.along(images, orders, wanted)
        return self.memory[key]
