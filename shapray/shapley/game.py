"""A cooperative game per image: units are the players, outputs of the network decide the value."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from shapray.shapley.coalitions import all_subsets, prefix_coalitions

ROWS = 2**14  # coalitions whose masks are spelled out at once
OUTPUT_BYTES = 2**26  # of outputs that wait to become values
DOUBLE_ROWS = 2**12  # outputs that are in float64 at once


class NonFiniteValue(ValueError):
    """A coalition's value is not a finite number.

    Attributes:
        image: index of the image among the game's.
        coalition: the players that were kept.
    """

    def __init__(self, image: int, coalition: list[int], value: float) -> None:
        self.image, self.coalition, self.value = image, coalition, value
        super().__init__(
            f"the value of image {image} is {value} "
            f"with the {len(coalition)} units {coalition} kept"
        )


def check_finite(values: Tensor, of: Callable[[int], tuple[int, list[int]]]) -> None:
    """Every value is a number.

    Args:
        values: of any shape.
        of: place among the flattened values -> its image and the players that were kept.
    Raises:
        NonFiniteValue: names the first that is not.
    """
    if values.isfinite().all():  # the only thing that is waited for
        return
    flat = values.flatten().cpu()
    place = int((~flat.isfinite()).nonzero()[0])
    raise NonFiniteValue(*of(place), flat[place].item())


class Game(ABC):
    """Games of the same players on several images.

    A value is computed in two steps, players -> outputs -> value, because the second is known
    and cheap: estimators may model the outputs and apply it themselves.

    Attributes:
        n_players: units of the group.
        active: (n_images, n_players) bool; the others are null players of that image.
        reference: (n_images, 2, n_outputs) outputs of the empty and the full coalition.
    """

    n_players: int
    active: Tensor
    reference: Tensor

    @abstractmethod
    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        """Outputs of coalitions.

        Args:
            images: (n_rows,) int64.
            coalitions: (n_rows, n_players) bool.
        Returns:
            (n_rows, n_outputs).
        """

    @abstractmethod
    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Values of outputs: (n_rows,) and (n_rows, n_outputs) -> (n_rows,) of the same dtype."""

    def surrogate(
        self,
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
        """A cheap stand-in for `value` and the outputs it takes, or None if outputs tell nothing.

        Returns:
            (images, pooled outputs) -> values, and (images, outputs) -> pooled outputs.
        """
        return None

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        """Outputs of coalitions met while players join one after the other.

        Args:
            images: (n_chains,) int64.
            orders: (n_chains, longest) int64, -1 after a chain's end.
            wanted: (n_chains, longest + 1) bool, the prefixes to evaluate.
        Returns:
            (wanted.sum(), n_outputs), chain after chain.
        """
        chains_at_once = max(1, ROWS // wanted.shape[1])
        return torch.cat(
            [
                self.outputs(
                    images[start : start + chains_at_once].repeat_interleave(part.sum(1)),
                    prefix_coalitions(orders[start : start + chains_at_once], self.n_players)[part],
                )
                for start in range(0, len(orders), chains_at_once)
                for part in [wanted[start : start + chains_at_once]]
            ]
        )

    def subset_values(self, image: int, players: Tensor) -> Tensor:
        """Values of every coalition of some players, the others absent.

        Args:
            image: index.
            players: (k,) int64.
        Returns:
            (2**k,) float64; entry i holds player j if bit j of i is set.
        """
        values = []
        for start in range(0, 2 ** len(players), ROWS):
            part = all_subsets(len(players), start, start + ROWS)
            coalitions = torch.zeros(len(part), self.n_players, dtype=torch.bool)
            coalitions[:, players] = part
            images = torch.full((len(part),), image)
            values.append(self.value(images, self.outputs(images, coalitions).double()))
        return torch.cat(values)


class FunctionGame(Game):
    """Any batched callable as a game: the output is the value.

    Args:
        function: (n_rows, n_players) bool -> (n_rows,) float64.
        n_players: how many.
        n_images: how many copies of the game; they differ in their random streams only.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], n_players: int, n_images: int = 1
    ) -> None:
        self.function, self.n_players = function, n_players
        self.active = torch.ones(n_images, n_players, dtype=torch.bool)
        ends = torch.stack([torch.zeros(n_players), torch.ones(n_players)]).bool()
        self.reference = function(ends)[None, :, None].expand(n_images, 2, 1)

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        return self.function(coalitions)[:, None]

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return outputs[:, 0]
