"""Coalitions of several images, each with its complement, evaluated together and once each.

They are drawn in `coalitions`, and weighted and corrected in `surrogate`."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.coalitions import distinct, paired_coalitions
from shapray.shapley.game import DOUBLE_ROWS, OUTPUT_BYTES, Game, check_finite
from shapray.shapley.surrogate import MAX_PLAYERS, MIN_PLAYERS, Evaluated, ImagePairs, corrected
from shapray.shapley.upload import upload


def in_pairs(n_players: int, n_permutations: int) -> bool:
    """Whether so many players are sampled by pairs of coalitions, if their game has a surrogate;
    by permutations else. A single pair of permutations leaves too little to fit."""
    return n_permutations > 2 and MIN_PLAYERS <= n_players <= MAX_PLAYERS


class DrawnPairs:
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
        self.members = paired_coalitions(n_players, self._most_pairs(n_permutations), seed)
        self.distinct, self.place = distinct(self.members)
        self.counts = self.distinct.searchsorted(2 * np.arange(len(self.members) + 1))

    def _coalitions_of(self, n_permutations: int) -> int:
        """What permutations take at most, without the empty and the full coalition."""
        return n_permutations * (self.n_players - 1)

    def _most_pairs(self, n_permutations: int) -> int:
        """Coalitions that come again are free, so there is room for some more."""
        n_pairs = self._coalitions_of(n_permutations) // 2
        return n_pairs + n_pairs // 4

    def n_pairs(self, n_permutations: int) -> int:
        """Pairs whose coalitions are no more than some permutations take."""
        most = self._coalitions_of(n_permutations)
        affordable = int(self.counts.searchsorted(most, side="right")) - 1
        return min(affordable, self._most_pairs(n_permutations))

    def n_distinct(self, n_permutations: int) -> int:
        """Different coalitions among these pairs."""
        return int(self.counts[self.n_pairs(n_permutations)])

    def coalitions(self, occurrences: np.ndarray) -> np.ndarray:
        """(n,) -> (n, n_players) bool."""
        return self.members[occurrences // 2] ^ (occurrences % 2 == 1)[:, None]


class Pairs:
    """Pairs of coalitions of some images, evaluated together.

    Args:
        game: the games, which have a surrogate.
        images: those to sample.
        n_permutations: as many coalitions per image as these would take at most.
        seeds: of all the game's images.
        ends: (all images, 2) float64, values of the empty and the full coalition.
    """

    sampling = "pairs"

    def __init__(
        self,
        game: Game,
        images: Sequence[int],
        n_permutations: int,
        seeds: Sequence[int],
        ends: Tensor,
    ) -> None:
        self.game, self.images, self.seeds, self.ends = game, images, seeds, ends
        self.players = [game.active[image].nonzero()[:, 0].numpy() for image in images]
        self.n_permutations = n_permutations
        self.drawn = [
            DrawnPairs(len(players), n_permutations, seeds[image])
            for image, players in zip(images, self.players, strict=True)
        ]
        stand_in = game.surrogate()
        assert stand_in is not None
        self.value, self.pool = stand_in
        self.device = game.reference.device
        self.values = [torch.empty(0, dtype=torch.float64, device=self.device) for _ in images]
        # outputs as the surrogate's `value` takes them
        index = upload(torch.tensor(images), self.device)
        at_ends = game.reference[index].flatten(0, 1).double()
        self.end_outputs = self.pool(index.repeat_interleave(2), at_ends).split(2)
        self.outputs = [ends_of_image[:0] for ends_of_image in self.end_outputs]

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What was drawn and has not been evaluated.

        Yields:
            image of each row, (n_rows,) int64 ascending, and (n_rows, n_players) bool.
        """
        kept = [
            drawn.distinct[len(values) : drawn.n_distinct(self.n_permutations)]
            for drawn, values in zip(self.drawn, self.values, strict=True)
        ]
        at_once = max(1, OUTPUT_BYTES // (4 * self.game.reference.shape[2] + self.game.n_players))
        row_of = np.repeat(np.arange(len(kept)), [len(part) for part in kept])
        every = np.concatenate(kept)
        for start in range(0, len(every), at_once):
            rows, here = row_of[start : start + at_once], every[start : start + at_once]
            coalitions = torch.zeros(len(rows), self.game.n_players, dtype=torch.bool)
            for row in np.unique(rows):
                first, last = np.searchsorted(rows, [row, row + 1])
                members = torch.from_numpy(self.drawn[row].coalitions(here[first:last]))
                coalitions[first:last, self.players[row]] = members
            yield torch.tensor(self.images)[torch.from_numpy(rows)], coalitions

    def evaluate(self) -> None:
        """Evaluate what was drawn.

        Raises:
            NonFiniteValue: with the coalition.
        """
        n_before = [len(values) for values in self.values]
        for index, coalitions in self.batches():
            found = self.game.outputs(index, coalitions)
            rows = upload(index, self.device).split(DOUBLE_ROWS)
            parts = zip(rows, found.split(DOUBLE_ROWS), strict=True)
            both = [
                (self.game.value(images, part.double()), self.pool(images, part.double()))
                for images, part in parts
            ]
            values, outputs = (torch.cat(column) for column in zip(*both, strict=True))
            counts = torch.bincount(index, minlength=len(self.game.active))[self.images].tolist()
            new = zip(values.split(counts), outputs.split(counts), strict=True)
            for row, (of_values, of_outputs) in enumerate(new):
                self.values[row] = torch.cat([self.values[row], of_values])
                self.outputs[row] = torch.cat([self.outputs[row], of_outputs])
        self._check(n_before)

    def _check(self, n_before: Sequence[int]) -> None:
        """All values beyond the first ones of each row are finite: looked at once, when all are
        there, as a look waits for the device."""
        new = [values[n:] for values, n in zip(self.values, n_before, strict=True)]
        ends = np.cumsum([len(values) for values in new])

        def of(place: int) -> tuple[int, list[int]]:
            row = int(ends.searchsorted(place, side="right"))
            number = n_before[row] + place - (int(ends[row]) - len(new[row]))
            kept = self.drawn[row].coalitions(self.drawn[row].distinct[number : number + 1])[0]
            return self.images[row], self.players[row][kept].tolist()

        check_finite(torch.cat(new), of)

    def estimates(self) -> list[np.ndarray]:
        """Shapley values of the images' players, from the coalitions evaluated so far.

        Returns:
            (2, k) float64 for each image, values and standard errors.
        """
        ends = upload(self.ends[list(self.images)], self.device).flatten()
        evaluated = Evaluated(
            torch.cat([ends, *self.values]), torch.cat([*self.end_outputs, *self.outputs])
        )
        pairs, first = [], len(ends)
        for row, (image, drawn) in enumerate(zip(self.images, self.drawn, strict=True)):
            n = drawn.n_pairs(self.n_permutations)
            pairs.append(
                ImagePairs(
                    image=image,
                    members=drawn.members[:n],
                    place=first + drawn.place[:n],
                    ends=(2 * row + 1, 2 * row),
                    seed=self.seeds[image] ^ 1,  # another stream: Philox keys need only differ
                )
            )
            first += len(self.values[row])
        return corrected(pairs, evaluated, self.value)

    def n_evaluations(self, row: int) -> int:
        """Coalitions whose value was computed for the image in a row, both ends included."""
        return len(self.values[row]) + 2
