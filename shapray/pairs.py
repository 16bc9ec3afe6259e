"""Coalitions of several images, each with its complement, evaluated together and once each."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from shapray.chains import DOUBLE_ROWS, OUTPUT_BYTES
from shapray.coalitions import distinct, paired_coalitions
from shapray.game import Game, NonFiniteValue
from shapray.surrogate import MAX_PLAYERS, MIN_PLAYERS, ImagePairs, corrected


def are_drawn(n_players: int, n_permutations: int) -> bool:
    """Whether so many players are sampled by pairs of coalitions, if their game has a surrogate;
    by permutations else. A single pair of permutations leaves too little to fit."""
    return n_permutations > 2 and MIN_PLAYERS <= n_players <= MAX_PLAYERS


class Drawn:
    """The pairs of one image.

    Args:
        n_players: at least 2.
        n_permutations: as many different coalitions as these take at most.
        seed: of the image.

    Attributes:
        members: (n_pairs, n_players) bool.
        distinct: (n_distinct,) int64, the first occurrences: 2 i is pair i's coalition, 2 i + 1
            its complement.
        place: (n_pairs, 2) int64, where in `distinct` each of both is found.
        counts: (n_pairs + 1,) int64, different coalitions among the first pairs.
    """

    def __init__(self, n_players: int, n_permutations: int, seed: int) -> None:
        self.n_players = n_players
        n_pairs = self._coalitions_of(n_permutations) // 2
        # Coalitions that come again are free, so there is room for some more.
        self.members = paired_coalitions(n_players, n_pairs + n_pairs // 4, seed)
        self.distinct, self.place = distinct(self.members)
        self.counts = self.distinct.searchsorted(2 * np.arange(len(self.members) + 1))

    def _coalitions_of(self, n_permutations: int) -> int:
        """What permutations take at most, without nobody and everybody."""
        return n_permutations * (self.n_players - 1)

    def n_pairs(self, n_permutations: int) -> int:
        """Pairs whose coalitions are no more than some permutations take."""
        most = self._coalitions_of(n_permutations)
        return int(self.counts.searchsorted(most, side="right")) - 1

    def n_distinct(self, n_permutations: int) -> int:
        """Different coalitions among these pairs."""
        return int(self.counts[self.n_pairs(n_permutations)])

    def coalitions(self, occurrences: np.ndarray) -> np.ndarray:
        """(n,) -> (n, n_players) bool."""
        return self.members[occurrences // 2] ^ (occurrences % 2 == 1)[:, None]


class Pairs:
    """Pairs of coalitions of some images, evaluated together, a part or all at a time.

    Args:
        game: the games, which have a surrogate.
        images: those to sample.
        n_permutations: as many coalitions per image as these would take at most.
        seeds: of all the game's images.
        ends: (all images, 2) float64, values of nobody and everybody.
    """

    def __init__(
        self,
        game: Game,
        images: Sequence[int],
        n_permutations: int,
        seeds: Sequence[int],
        ends: Tensor,
    ) -> None:
        self.game, self.images, self.seeds, self.ends = game, images, seeds, ends
        self.players = [game.active[image].nonzero()[:, 0] for image in images]
        self.drawn = [
            Drawn(len(players), n_permutations, seeds[image])
            for image, players in zip(images, self.players, strict=True)
        ]
        stand_in = game.surrogate()
        assert stand_in is not None
        self.value, self.pool = stand_in
        self.device = game.reference.device
        self.values = [torch.empty(0, dtype=torch.float64, device=self.device) for _ in images]
        self.outputs: list[Tensor] = []  # of the surrogate's `value`
        for image in images:
            index = torch.tensor([image, image], device=self.device)
            self.outputs.append(self.pool(index, game.reference[image].double())[:0])
        self.n_done = 0

    def coalitions(self, n_permutations: int) -> tuple[Tensor, Tensor]:
        """What is to be evaluated next, up to the given number of permutations' worth.

        Returns:
            image of each row, (n_rows,) int64, and (n_rows, n_players) bool.
        """
        index, rows = [], []
        for image, players, drawn, values in zip(
            self.images, self.players, self.drawn, self.values, strict=True
        ):
            kept = drawn.distinct[len(values) : drawn.n_distinct(n_permutations)]
            coalitions = torch.zeros(len(kept), self.game.n_players, dtype=torch.bool)
            coalitions[:, players] = torch.from_numpy(drawn.coalitions(kept))
            index.append(torch.full((len(kept),), image))
            rows.append(coalitions)
        return torch.cat(index), torch.cat(rows)

    def extend(self, n_permutations: int) -> None:
        """Evaluate as many coalitions per image as so many permutations take at most.

        Raises:
            NonFiniteValue: with the coalition.
        """
        index, coalitions = self.coalitions(n_permutations)
        n_outputs = self.game.reference.shape[2]
        at_once = max(1, OUTPUT_BYTES // (4 * n_outputs))
        values, outputs = [self.ends.new_empty(0).to(self.device)], [self.outputs[0][:0]]
        for images, rows in zip(index.split(at_once), coalitions.split(at_once), strict=True):
            found = self.game.outputs(images, rows)
            on_device = images.to(self.device)
            for part, few in zip(
                on_device.split(DOUBLE_ROWS), found.split(DOUBLE_ROWS), strict=True
            ):
                values.append(self.game.value(part, few.double()))
                outputs.append(self.pool(part, few.double()))
        every = torch.cat(values)
        if not every.isfinite().all():
            row = int((~every.isfinite()).nonzero()[0])
            kept = coalitions[row].nonzero()[:, 0].tolist()
            raise NonFiniteValue(int(index[row]), kept, every[row].item())
        per_image = torch.bincount(index, minlength=len(self.game.active))
        counts = per_image[self.images].tolist()
        for row, (new, of_new) in enumerate(
            zip(every.split(counts), torch.cat(outputs).split(counts), strict=True)
        ):
            self.values[row] = torch.cat([self.values[row], new])
            self.outputs[row] = torch.cat([self.outputs[row], of_new])
        self.n_done = n_permutations

    def estimates(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Shapley values of the images, from the coalitions evaluated so far.

        Returns:
            per image, values and standard errors, (n_players,) float64; both 0 for null players.
        """
        found = []
        for row, players in enumerate(self.players):
            both = np.zeros((2, self.game.n_players))
            both[:, players.numpy()] = torch.stack(corrected(self._of_row(row))).cpu().numpy()
            found.append((both[0], both[1]))
        return found

    def _of_row(self, row: int) -> ImagePairs:
        image, drawn = self.images[row], self.drawn[row]
        n = drawn.n_pairs(self.n_done)
        place = torch.from_numpy(drawn.place[:n]).to(self.device)
        index = torch.tensor([image, image], device=self.device)
        return ImagePairs(
            members=torch.from_numpy(drawn.members[:n]).to(self.device),
            values=self.values[row][place],
            outputs=self.outputs[row][place],
            end_values=self.ends[image].to(self.device),
            end_outputs=self.pool(index, self.game.reference[image].double()),
            value=_of_image(self.value, image),
            seed=self.seeds[image] ^ 1,  # another stream: Philox keys need only differ
        )

    def n_evaluations(self, row: int) -> int:
        """Coalitions whose value was computed for the image in a row, both ends included."""
        return len(self.values[row]) + 2


def _of_image(value: Callable[[Tensor, Tensor], Tensor], image: int) -> Callable[[Tensor], Tensor]:
    def of_outputs(outputs: Tensor) -> Tensor:
        return value(torch.full((len(outputs),), image, device=outputs.device), outputs)

    return of_outputs
