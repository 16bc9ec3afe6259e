"""What one group's scoring costs: each of its parts timed through the engine on a few images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from shapray.config import Score
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.network.group import Group
from shapray.shapley.estimators import MAX_EXACT_PLAYERS, Estimate, estimate, is_exact
from shapray.shapley.pairs import Pairs, in_pairs
from shapray.shapley.permutations import Permutations
from shapray.storage import names
from shapray.storage.aggregate import aggregate_group
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import CLASS_SCORES, SCORES
from shapray.storage.shards import publish_shard, read_shard
from shapray.worker.costs import MAX_PERMUTATIONS, MIN_PERMUTATIONS, GroupCosts
from shapray.worker.rows import shard_table
from shapray.worker.stand_in import StandIn
from shapray.worker.stopwatch import REPEAT_SECONDS, Stopwatch
from shapray.worker.tasks import Setup

TIMED_MACS = 1.5e10  # of the coalitions of a group that are timed, each way
HEAD_MACS = 4e9  # of the images of a group that are timed
STAND_IN_IMAGES = 16


@dataclass(frozen=True)
class Counted:
    """What the surveys of all groups share.

    Attributes:
        folded: the network, from `fold`.
        macs: its multiply-adds for one image.
        precision: of the scoring.
        images: (n_counted, channels, height, width) float32.
        labels: (n_counted,) int64 or None.
    """

    folded: nn.Module
    macs: int
    precision: str
    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class _Sampled:
    """Times of the images that are sampled; `tables` to `books` are those of `GroupCosts`.

    Attributes:
        estimates: made on the way, of the largest number of permutations.
    """

    tables: float
    rows: int
    coalition: float
    books: tuple[float, ...]
    estimates: list[Estimate]


class GroupSurvey:
    """Prepares a group for scoring and times it.

    Args:
        setup: the run's network, groups to score and images.
        group: one of them.
        counted: images to time on, and the network.
        n_active: (n_counted,), the group's active units on these images.
        stopwatch: of the device.
        permutations: ascending; at each of them the work around the network is timed, unless
            that takes long enough to follow from the ones before.

    Attributes:
        split: the network, prepared.
        prepare: seconds that this took.
        per_game: images that a task has in work at once.
        n_timed: as many of them as are timed.
    """

    def __init__(
        self,
        setup: Setup,
        group: Group,
        counted: Counted,
        n_active: np.ndarray,
        stopwatch: Stopwatch,
        permutations: tuple[int, ...],
    ) -> None:
        self.setup, self.group, self.counted = setup, group, counted
        self.n_active, self.stopwatch, self.permutations = n_active, stopwatch, permutations
        start = stopwatch.now()
        self.split = NetworkSplit(
            counted.folded,
            group,
            counted.images[:1],
            precision=counted.precision,
            device=stopwatch.device,
            memory=setup.job.cluster.memory_per_worker,
        )
        self.prepare = stopwatch.now() - start
        at_once = self.split.images_at_once(max(permutations))
        self.per_game = min(setup.job.cluster.images_per_task, at_once)
        self.n_timed = int(min(self.per_game, max(1, HEAD_MACS // max(1, counted.macs))))

    def costs(self) -> GroupCosts:
        """Time all parts; those of an estimator that no image needs take 0 seconds."""
        some = _evenly(np.arange(len(self.n_active)), self.n_active, self.n_timed)
        image = self.stopwatch.seconds(lambda: self._game(some)) / self.n_timed
        sampled, exact = self._by_estimator()
        of_sampled = self._sampled(sampled, self.permutations)
        subset_image, subset, of_exact = self._subsets(exact)
        row, aggregate, sizes = self._tables([*of_sampled.estimates, *of_exact])
        return GroupCosts(
            prepare=self.prepare,
            image=image,
            tables=of_sampled.tables,
            rows=of_sampled.rows,
            coalition=of_sampled.coalition,
            permutations=self.permutations[: len(of_sampled.books)],
            books=of_sampled.books,
            subset_image=subset_image,
            subset=subset,
            row=row,
            aggregate=aggregate,
            shard_bytes=sizes[0],
            scores_bytes=sizes[1],
            label_bytes=sizes[2],
        )

    def _by_estimator(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the images that the fewest permutations sample, and of those that are exact
        with the most. An image may be among both: the dearer sampling is, the sooner enumerating
        all its coalitions is cheaper."""
        score = self.setup.job.score
        few = score.model_copy(update={"permutations": MIN_PERMUTATIONS})
        most = score.model_copy(update={"permutations": MAX_PERMUTATIONS})
        sampled = np.flatnonzero([not _is_exact(k, few) for k in self.n_active])
        return sampled, np.flatnonzero([_is_exact(k, most) for k in self.n_active])

    def _game(self, chosen: np.ndarray) -> NetworkGame:
        labels = self.counted.labels
        here = None if labels is None else labels[chosen]
        return self.split.game(self.counted.images[chosen], here, self.setup.job.score.value)

    def _sampled(self, sampled: np.ndarray, permutations: tuple[int, ...]) -> _Sampled:
        """Times of the images that are sampled.

        Args:
            sampled: their indices.
        """
        if not len(sampled):
            return _Sampled(0.0, self.split.rows, 0.0, (0.0,) * len(permutations), [])
        most = max(permutations)
        share = len(sampled) / len(self.n_active)
        n_images = max(1, min(self.n_timed, round(self.per_game * share)))
        game = self._game(_evenly(sampled, self.n_active, n_images))
        tables, coalition = self._coalitions(game, most)
        all_at_once = in_pairs(int(game.active.sum(1).max()), most)
        n_images = min(STAND_IN_IMAGES, n_images, self.split.images_at_once(most))
        stand_in = StandIn(self._game(_evenly(sampled, self.n_active, n_images)))
        books, estimates = self._books(stand_in, permutations)
        return _Sampled(
            tables=tables,
            rows=MAX_PERMUTATIONS if all_at_once else self.split.rows,
            coalition=coalition,
            books=books,
            estimates=estimates,
        )

    def _coalitions(self, game: NetworkGame, permutations: int) -> tuple[float, float]:
        """Seconds for the tables of an image and per coalition, from few and from more of those
        that will be drawn."""
        n_images, most_players = len(game.active), int(game.active.sum(1).max())
        most = max(TIMED_MACS / max(1, self.split.tail_macs), 2.0 * self.split.rows)
        if in_pairs(most_players, permutations):
            parts = _some_pairs(game, permutations, most)
        else:
            parts = _some_steps(game, permutations, most)
        points = [(n, self.stopwatch.seconds(run)) for n, run in parts]
        (few, before), (many, behind) = points[0], points[-1]
        if many == few:
            return 0.0, behind / max(1, many)
        coalition = min(max(0.0, behind - before) / (many - few), behind / many)
        return max(0.0, before - few * coalition) / n_images, coalition

    def _books(
        self, game: StandIn, permutations: tuple[int, ...]
    ) -> tuple[tuple[float, ...], list[Estimate]]:
        """Seconds per image of everything around the network, at as many of the numbers of
        permutations as are needed; never less for more. And the last estimates."""
        n_images = len(game.active)
        times: list[float] = []
        estimates: list[Estimate] = []
        for number in permutations:
            asked = Score(estimator="permutation", permutations=number)

            def run(asked: Score = asked) -> None:
                estimates[:] = estimate(game, asked, range(n_images))

            times.append(self.stopwatch.seconds(run) / n_images)
            if len(times) > 1 and times[-1] * n_images > REPEAT_SECONDS:
                break  # more permutations take long enough to follow from these
        return tuple(np.maximum.accumulate(times).tolist()), estimates

    def _subsets(self, exact: np.ndarray) -> tuple[float, float, list[Estimate]]:
        """Seconds per exact image and per coalition of it, from the subsets of few and of more
        units of the one with the most.

        Args:
            exact: indices of the images that are.
        """
        if not len(exact):
            return 0.0, 0.0, []
        game = self._game(exact[[self.n_active[exact].argmax()]])
        players = game.active[0].nonzero()[:, 0]
        most = int(math.log2(max(2.0, TIMED_MACS / max(1, self.split.tail_macs))))
        sizes = sorted({min(len(players), 2), min(len(players), most)})
        points = []
        found: list[Estimate] = []

        def run() -> None:
            found[:] = estimate(game, Score(estimator="exact"), [0])

        for size in sizes:
            game.active = torch.zeros_like(game.active)
            game.active[0, players[:size]] = True
            points.append((2**size, self.stopwatch.seconds(run)))
        (few, before), (many, behind) = points[0], points[-1]
        each = 0.0 if many == few else max(0.0, behind - before) / (many - few)
        return max(0.0, before - few * each), each, found

    def _tables(self, estimates: list[Estimate]) -> tuple[float, float, tuple[int, int, int]]:
        """Seconds per image to write its row and per shard to read it; bytes of the tables."""
        group = self.group
        n_images = min(self.setup.job.cluster.images_per_task, len(self.setup.calibration))
        estimates = [estimates[i % len(estimates)] for i in range(n_images)]
        ids = self.setup.calibration.ids[:n_images]
        labels = torch.zeros(n_images, dtype=torch.int64)
        store = RunDirectory("memory://shapray-costs")
        sizes: list[int] = []

        def write() -> None:
            rows = shard_table(group.name, ids, labels, estimates)
            sizes[:1] = [publish_shard(store, group.name, 0, n_images, rows, "", "")]

        def read() -> None:
            shard = read_shard(store, group.name, group.n_units, 0, ids, "")
            scores, classes = aggregate_group(group.name, group.n_units, [shard])
            sizes[1:] = [
                store.publish_table(names.SCORES, [scores], SCORES),
                store.publish_table(names.CLASS_SCORES, [classes], CLASS_SCORES),
            ]

        try:
            writing, reading = self.stopwatch.seconds(write), self.stopwatch.seconds(read)
        finally:
            store.fs.rm(store.root, recursive=True)
        return writing / n_images, reading, (sizes[0], sizes[1], sizes[2])


def _some_steps(
    game: NetworkGame, permutations: int, most: float
) -> list[tuple[int, Callable[[], object]]]:
    """Two steps of permutations of all images, and as many steps as are timed: number of
    coalitions, and what evaluates them."""
    n_images = len(game.active)
    n_chains = 2 * max(1, min(permutations, int(most / n_images / 2)) // 2)
    ends = torch.zeros(n_images, 2, dtype=torch.float64)
    chains = Permutations(game, range(n_images), n_chains, list(range(n_images)), ends)
    index = torch.arange(n_images).repeat_interleave(n_chains)
    orders = torch.from_numpy(chains.units).flatten(0, 1)
    wanted = chains.wanted.flatten(0, 1)
    per_step = wanted.sum(0).cumsum(0)  # coalitions up to each step
    last = int((per_step <= most).sum().clamp(3, orders.shape[1]))
    return [
        (
            int(wanted[:, : stop + 1].sum()),
            partial(game.along, index, orders[:, :stop], wanted[:, : stop + 1]),
        )
        for stop in sorted({2, last})
    ]


def _some_pairs(
    game: NetworkGame, permutations: int, most: float
) -> list[tuple[int, Callable[[], object]]]:
    """The same with two coalitions of every image, and with as many as are timed."""
    players = game.active.sum(1).tolist()
    images = [i for i, k in enumerate(players) if in_pairs(k, permutations)]
    of_one = most / len(images) / (min(players[i] for i in images) - 1)  # permutations' worth
    permutations = min(permutations, 2 * max(2, math.ceil(of_one / 2)))
    ends = torch.zeros(len(game.active), 2, dtype=torch.float64)
    pairs = Pairs(game, images, permutations, list(range(len(game.active))), ends)
    index, coalitions = next(pairs.batches())
    rank = torch.cat([torch.arange(n) for n in torch.bincount(index).tolist()])  # in its image
    parts: list[tuple[int, Callable[[], object]]] = []
    for per_image in sorted({2, max(2, int(most / len(images)))}):
        chosen = rank < per_image
        run = partial(game.outputs, index[chosen], coalitions[chosen])
        parts.append((int(chosen.sum()), run))
    return parts


def _evenly(of: np.ndarray, n_active: np.ndarray, n: int) -> np.ndarray:
    """`n` of some images, from those with few to those with many active units; repeats if few."""
    order = of[n_active[of].argsort(kind="stable")]
    return order[np.linspace(0, len(order) - 1, n).round().astype(int)]


def _is_exact(n_active: int, score: Score) -> bool:
    return n_active <= MAX_EXACT_PLAYERS and is_exact(int(n_active), score)
