"""One group's game played again on some calibration images: the tables that take new coalitions.

What it may take is a quarter of the coalitions that scoring the group took, `PARTS` of it for each
part. Images come first, as the means are meant for all of them and most of the spread is between
images; where all images are in and there is room, each is drawn from more often. Which ones are in
is drawn, too. Least useful are `MIN_IMAGES` images (all if there are fewer), each with the fewest
draws that tell their error: so much is taken in any case.

`sampling` has images of few active units, on which everything can be known, as many as its part and
what the others leave allow, and of as many different numbers of units as there are; it may have
none, and then the others have its part.

Interactions are those of units that are active on some of the images; the others have none. Images
are enumerated for them if all can be: many drawn ones tell more of the mean than a few exact ones.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.score import naming
from shapray.explain import interactions as pairwise
from shapray.explain.additivity import Additivity, additivity, additivity_rows
from shapray.explain.interactions import (
    Interactions,
    interaction_rows,
    interactions,
    pairs_at_ends,
)
from shapray.explain.sampling import (
    Sampled,
    flip_rows,
    most_players,
    sampled_and_exact,
    sampling_rows,
)
from shapray.explain.sizes import Marginals, marginals_by_size, size_rows
from shapray.shapley.coalitions import image_seed
from shapray.storage.explained import FLIPS, INTERACTIONS, SAMPLING

SHARE = 1 / 4  # of what scoring the group took
PARTS = {"interactions": 0.35, "sizes": 0.25, "additivity": 0.2, "sampling": 0.2}
MIN_IMAGES = 8
MOST_DRAWS = 16  # of an image: pairs of coalitions or of permutations
MOST_ENUMERATED = 32  # images of few units, each of which is sampled over and over

F = TypeVar("F", Interactions, Marginals, Additivity, Sampled)


@dataclass(frozen=True)
class Asked:
    """What is asked of a group.

    Attributes:
        value: name of the value function.
        seed: of the job.
        order: the group's units by the job's ranking, the least important first.
        n_cut: units that go: as many as the job removes, half of a group that loses none.
        rank_by: "mean" or "mean_abs", the scores by which sampling is to find the cut.
        exact_max_players: an image with no more active units is enumerated.
        n_evaluations: coalitions that scoring the group took, over all images.
    """

    value: str
    seed: int
    order: list[int]
    n_cut: int
    rank_by: str
    exact_max_players: int
    n_evaluations: int


@dataclass(frozen=True)
class Played:
    """Tables of one group.

    Attributes:
        tables: by name, with the schemas of `storage.explained`: interactions, sizes, additivity,
            sampling, flips.
        n_evaluations: coalitions whose value was computed, by part.
    """

    tables: dict[str, pa.Table]
    n_evaluations: dict[str, int]


def play_again(
    split: NetworkSplit,
    images: Tensor,
    labels: Tensor | None,
    ids: Sequence[str],
    scored: np.ndarray,
    asked: Asked,
) -> Played:
    """Play a group's game again.

    Args:
        split: the network prepared for the group.
        images: (n, channels, height, width) float32, those that it may be played on; at least one.
        labels: (n,) int64, or None.
        ids: of the images; with the seed and the group they name an image's random streams.
        scored: (n_drawn, n_units) Shapley values of the first images, as scoring the group found
            them. These were drawn from all; what images may follow are for `sampling` alone.
        asked: what for.
    Raises:
        ValueError: a value is not finite; names group, image and coalition.
    """
    return _Play(split, images, labels, ids, scored, asked).played()


class _Play:
    """Arguments as of `play_again`.

    Attributes:
        n_active: (n_images,) int64.
        of_drawn: (n_drawn,) int64, the same of the images that were drawn.
        is_ever_active: (n_units,) bool, on these.
        order: (n_drawn,) int64, the images in the order in which they come in.
    """

    def __init__(
        self,
        split: NetworkSplit,
        images: Tensor,
        labels: Tensor | None,
        ids: Sequence[str],
        scored: np.ndarray,
        asked: Asked,
    ) -> None:
        self.split, self.images, self.labels, self.ids = split, images, labels, ids
        self.scored, self.asked, self.group = scored, asked, split.group.name
        every = np.arange(len(ids))
        active = np.concatenate([game.active.numpy() for game, _ in self._games(every, 1)])
        self.n_active, self.is_ever_active = active.sum(1), np.any(active[: len(scored)], axis=0)
        self.of_drawn = self.n_active[: len(scored)]
        self.every = sorted(every.tolist(), key=lambda image: self._seed("images", image))
        self.order = np.array([image for image in self.every if image < len(scored)])
        self.spent: dict[str, int] = {}
        self.room = SHARE * asked.n_evaluations
        if len(self._of_few_units(PARTS["sampling"] * self.room)) == 0:
            self.room /= 1 - PARTS["sampling"]  # that of the other parts

    def played(self) -> Played:
        tables = {
            "interactions": self._interactions(),
            "sizes": self._sizes(),
            "additivity": self._additivity(),
        }
        tables["sampling"], tables["flips"] = self._sampling()
        return Played(tables, self.spent)

    def _interactions(self) -> pa.Table:
        pairs = pairs_at_ends([unit for unit in self.asked.order if self.is_ever_active[unit]])
        if not pairs:  # one unit at most
            return INTERACTIONS.empty_table()
        both = np.array([(pair.unit, pair.other) for pair in pairs])
        limit = self.asked.exact_max_players

        def cost(n_draws: int) -> np.ndarray:
            n_pairs, active = len(pairs), self.of_drawn.tolist()  # 2**64 is 0 in NumPy's integers
            return np.array(
                [pairwise.n_evaluations(k, n_pairs, limit, n_draws) for k in active], float
            )

        if cost(pairwise.MIN_DRAWS).sum() > PARTS["interactions"] * self.room:
            limit = 0
        chosen, n_draws = self._affordable("interactions", cost, pairwise.MIN_DRAWS)
        found = self._play(
            "interactions",
            chosen,
            lambda game, here: interactions(
                game, both, self._seeds("interactions", here), limit, n_draws
            ),
        )
        return interaction_rows(self.group, pairs, found)

    def _sizes(self) -> pa.Table:
        inner = np.maximum(self.of_drawn - 1, 0)
        chosen, n_pairs = self._affordable("sizes", lambda n: 2 * n * inner + 2, 1)
        found = self._play(
            "sizes",
            chosen,
            lambda game, here: marginals_by_size(
                game, self._seeds("sizes", here), 2 * n_pairs, self.scored[here]
            ),
            n_permutations=2 * n_pairs,
        )
        return size_rows(self.group, found)

    def _additivity(self) -> pa.Table:
        chosen, _ = self._affordable("additivity", lambda n: n * (2 * self.of_drawn + 2), 1, 1)
        found = self._play("additivity", chosen, lambda game, here: additivity(game), 2)
        return additivity_rows(self.group, found)

    def _sampling(self) -> tuple[pa.Table, pa.Table]:
        chosen = self._of_few_units(SHARE * self.asked.n_evaluations - sum(self.spent.values()))
        if len(chosen) == 0:
            self.spent["sampling"] = 0
            return SAMPLING.empty_table(), FLIPS.empty_table()
        found = self._play(
            "sampling",
            chosen,
            lambda game, here: sampled_and_exact(game, self._seeds("sampling", here)),
        )
        ids = [self.ids[image] for image in chosen]
        flips = flip_rows(self.group, found, self.asked.n_cut, self.asked.rank_by)
        return sampling_rows(self.group, ids, found), flips

    def _of_few_units(self, room: float) -> np.ndarray:
        """Images to enumerate: in turn one of each number of active units, the fewest first."""
        waiting = {
            k: [image for image in self.every if self.n_active[image] == k]
            for k in range(1, most_players(self.split.n_outputs) + 1)
        }
        chosen: list[int] = []
        while True:
            before = len(chosen)
            for k, images in waiting.items():
                if images and 2**k <= room and len(chosen) < MOST_ENUMERATED:
                    chosen.append(images.pop(0))
                    room -= 2**k
            if len(chosen) == before:
                return np.sort(np.array(chosen, np.int64))

    def _affordable(
        self, part: str, cost: Callable[[int], np.ndarray], fewest: int, most: int = MOST_DRAWS
    ) -> tuple[np.ndarray, int]:
        """Images of a part, and how often each is drawn from.

        Args:
            cost: number of draws -> coalitions of each image, (n_images,).
            fewest, most: draws.
        """
        room = PARTS[part] * self.room
        n = max(MIN_IMAGES, int(room // cost(fewest).mean()))
        if n < len(self.order):
            return np.sort(self.order[:n]), fewest
        draws = fewest
        while draws < most and cost(draws + 1).sum() <= room:
            draws += 1
        return np.sort(self.order), draws

    def _seed(self, tag: str, image: int) -> int:
        """Of a random stream that serves nothing else."""
        return image_seed(self.asked.seed, f"{self.group}\0explain {tag}", self.ids[image])

    def _seeds(self, tag: str, chosen: np.ndarray) -> list[int]:
        return [self._seed(tag, image) for image in chosen]

    def _play(
        self,
        part: str,
        chosen: np.ndarray,
        play: Callable[[NetworkGame, np.ndarray], F],
        n_permutations: int = 1,
    ) -> F:
        """Play on some images, as many at once as there is room for.

        Args:
            chosen: (n,) int64, ascending.
            play: on a game of some images, and these, (n,) int64.
            n_permutations: as many coalitions of each image as these have are there at once.
        """
        found = []
        for game, here in self._games(chosen, n_permutations):
            with naming(self.group, [self.ids[image] for image in here]):
                found.append(play(game, here))
        joined = _joined(found)
        self.spent[part] = int(joined.n_evaluations.sum())
        return joined

    def _games(
        self, chosen: np.ndarray, n_permutations: int
    ) -> Iterator[tuple[NetworkGame, np.ndarray]]:
        at_once = self.split.images_at_once(n_permutations)
        for start in range(0, len(chosen), at_once):
            here = chosen[start : start + at_once]
            index = torch.from_numpy(here)
            labels = None if self.labels is None else self.labels[index]
            yield self.split.game(self.images[index], labels, self.asked.value), here


def _joined(parts: list[F]) -> F:
    """What was found on several batches of images, as if on one."""
    names = [field.name for field in dataclasses.fields(parts[0])]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return type(parts[0])(**columns)
