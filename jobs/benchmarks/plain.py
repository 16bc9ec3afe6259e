"""A game that hides its surrogate, to be estimated by plain antithetic permutations."""

from torch import Tensor

from shapray.shapley.game import Game


class PlainGame(Game):
    """The same game, of whose outputs nothing is known to the estimator."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.n_players, self.active, self.reference = game.n_players, game.active, game.reference

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        return self.game.outputs(images, coalitions)

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.game.value(images, outputs)

    def subset_values(self, image: int, players: Tensor) -> Tensor:
        return self.game.subset_values(image, players)

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        return self.game.along(images, orders, wanted)
