"""What the parts of a job cost on this machine: each timed through the engine on a few images.

Nothing is scored: the coalitions evaluated here are the first ones of each image, or the subsets of
a few units, and their values are thrown away.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shapray.config import Score
from shapray.engine.fold import fold
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.precision import choose_precision
from shapray.engine.rows import shard_table
from shapray.network.consumers import count_active
from shapray.network.surgery import prune_model
from shapray.pruning.evaluate import count_macs, tally
from shapray.shapley.estimators import MAX_EXACT_PLAYERS, Estimate, estimate, is_exact
from shapray.shapley.game import Game
from shapray.shapley.pairs import Pairs, in_pairs
from shapray.shapley.permutations import Permutations
from shapray.storage.aggregate import aggregate_group
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import CLASS_SCORES, SCORES
from shapray.storage.shards import publish_shard, read_shard
from shapray.worker.costs import GroupCosts, Survey
from shapray.worker.tasks import Setup

COUNTED_MACS = 2e11  # of forward passes that count active units
COUNTED_IMAGES = (16, 1000)  # at least and at most, if there are as many
TIMED_MACS = 1.5e10  # of the coalitions of a group that are timed, each way
HEAD_MACS = 4e9  # of the images of a group that are timed
PRETENDED_IMAGES = 4
FORWARD_IMAGES = 64  # at once
REPEATS, REPEAT_SECONDS = 5, 0.3
MIN_PERMUTATIONS, MAX_PERMUTATIONS = 2, 1024


@dataclass(frozen=True)
class SurveyTask:
    """Time everything; the work around the network at each of these numbers of permutations."""

    permutations: tuple[int, ...]
    cost: float = 0.0


class Surveyor:
    """Counts and times in the process that it lives in.

    Args:
        setup: the run's network, groups to score and images.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, setup: Setup, device: str) -> None:
        torch.set_num_threads(setup.job.cluster.cpus_per_worker)
        self.setup, self.device = setup, torch.device(device)
        self.example = setup.calibration.load(0, 1)
        self.folded = fold(setup.model, self.example)
        self.macs = count_macs(setup.model, self.example)[1]

    def survey(self, task: SurveyTask) -> Survey:
        job, calibration = self.setup.job, self.setup.calibration
        few, many = COUNTED_IMAGES
        n_counted = int(min(max(few, COUNTED_MACS // max(1, self.macs)), many, len(calibration)))
        chosen = spread(calibration.labels, len(calibration), n_counted)
        start = time.perf_counter()  # reading waits: the clock's time, not the processor's
        images = torch.cat([calibration.load(i, i + 1) for i in chosen.tolist()])
        load = (time.perf_counter() - start) / n_counted
        labels = None if calibration.labels is None else calibration.labels[chosen]
        watch, start = self._watch()
        parts = images.split(FORWARD_IMAGES)
        active = [count_active(self.setup.model, self.setup.groups, part) for part in parts]
        look = (watch() - start) / n_counted
        n_active = np.concatenate(active)
        forward, network = self._evaluation(parts[0])
        precision: str = job.score.precision
        if precision == "auto":
            memory = job.cluster.memory_per_worker
            precision = choose_precision(
                self.folded, list(self.setup.groups), self.example, self.device, memory
            )
        groups = {
            group.name: self._group(column, images, labels, n_active[:, column], precision, task)
            for column, group in enumerate(self.setup.groups)
        }
        return Survey(
            device=self.device.type,
            images=chosen,
            n_active=n_active,
            precision=precision,
            load=load,
            look=look,
            forward=forward,
            network=network,
            groups=groups,
        )

    def _evaluation(self, images: Tensor) -> tuple[float, float]:
        group = self.setup.groups[0]
        start = time.perf_counter()
        network = prune_model(self.setup.model, self.example, {group.name: [0]})
        count_macs(network, self.example)
        making = time.perf_counter() - start
        network = network.to(self.device)
        labels = torch.zeros(len(images), dtype=torch.int64)
        spent = self._seconds(lambda: tally(network, images, labels, self.device))
        return spent / len(images), making

    def _group(
        self,
        column: int,
        images: Tensor,
        labels: Tensor | None,
        n_active: np.ndarray,
        precision: str,
        task: SurveyTask,
    ) -> GroupCosts:
        job, group = self.setup.job, self.setup.groups[column]
        watch, start = self._watch()
        split = NetworkSplit(
            self.folded,
            group,
            self.example,
            precision=precision,
            device=self.device,
            memory=job.cluster.memory_per_worker,
        )
        prepare = watch() - start

        def game(chosen: np.ndarray) -> NetworkGame:
            here = None if labels is None else labels[chosen]
            return split.game(images[chosen], here, job.score.value)

        # what is sampled with few permutations may be exact with many
        few = job.score.model_copy(update={"permutations": MIN_PERMUTATIONS})
        many = job.score.model_copy(update={"permutations": MAX_PERMUTATIONS})
        sampled = np.flatnonzero([not _is_exact(k, few) for k in n_active])
        exact = np.flatnonzero([_is_exact(k, many) for k in n_active])

        at_once = min(job.cluster.images_per_task, split.images_at_once(job.score.permutations))
        n_images = int(min(at_once, max(1, HEAD_MACS // max(1, self.macs))))
        some = _evenly(np.arange(len(images)), n_active, n_images)
        image = self._seconds(lambda: game(some)) / n_images
        tables = coalition = subset_image = subset = 0.0
        rows = split.rows
        books: tuple[float, ...] = (0.0,) * len(task.permutations)
        estimates: list[Estimate] = []
        if len(sampled):
            share = len(sampled) / len(n_active)
            n_sampled = max(1, min(n_images, round(at_once * share)))
            chosen = game(_evenly(sampled, n_active, n_sampled))
            most = max(task.permutations)
            tables, coalition = self._sampled(chosen, split, most)
            if in_pairs(int(chosen.active.sum(1).max()), most):
                rows = MAX_PERMUTATIONS  # all pairs of an image are in work together
            few_images = min(PRETENDED_IMAGES, n_sampled, split.images_at_once(most))
            chosen = game(_evenly(sampled, n_active, few_images))
            pretended, times = _Pretended(chosen), []
            for permutations in task.permutations:
                spent, estimates = self._books(pretended, job.score, permutations)
                times.append(spent)
                if len(times) > 1 and spent * len(estimates) > REPEAT_SECONDS:
                    break  # more permutations take long enough to follow from these
            books = tuple(np.maximum.accumulate(times).tolist())
        if len(exact):
            chosen = game(exact[[n_active[exact].argmax()]])
            subset_image, subset, found = self._subsets(chosen, split)
            estimates = [*estimates, *found]
        row, aggregate, sizes = self._tables(column, estimates)
        return GroupCosts(
            prepare=prepare,
            image=image,
            tables=tables,
            rows=rows,
            coalition=coalition,
            permutations=task.permutations[: len(books)],
            books=books,
            subset_image=subset_image,
            subset=subset,
            row=row,
            aggregate=aggregate,
            shard_bytes=sizes[0],
            scores_bytes=sizes[1],
            label_bytes=sizes[2],
        )

    def _sampled(
        self, game: NetworkGame, split: NetworkSplit, permutations: int
    ) -> tuple[float, float]:
        """Seconds for the tables of an image and per coalition, from few and from more of those
        that will be drawn."""
        n_images, most_players = len(game.active), int(game.active.sum(1).max())
        most = max(TIMED_MACS / max(1, split.tail_macs), 2.0 * split.rows)
        if in_pairs(most_players, permutations):
            parts = _some_pairs(game, permutations, most)
        else:
            parts = _some_steps(game, permutations, most)
        points = [(n, self._seconds(run)) for n, run in parts]
        (few, before), (many, behind) = points[0], points[-1]
        if many == few:
            return 0.0, behind / max(1, many)
        coalition = min(max(0.0, behind - before) / (many - few), behind / many)
        return max(0.0, before - few * coalition) / n_images, coalition

    def _books(
        self, game: "_Pretended", score: Score, permutations: int
    ) -> tuple[float, list[Estimate]]:
        changes: dict[str, Any] = {"permutations": permutations, "estimator": "permutation"}
        if score.target_standard_error is not None:
            changes["target_standard_error"] = 1e-12  # all rounds, as none can be foreseen
        asked, seeds = score.model_copy(update=changes), list(range(len(game.active)))
        found: list[Estimate] = []

        def run() -> None:
            found[:] = estimate(game, asked, seeds)

        return self._seconds(run) / len(seeds), found

    def _subsets(
        self, game: NetworkGame, split: NetworkSplit
    ) -> tuple[float, float, list[Estimate]]:
        """Seconds per image and per coalition of it, from the subsets of few and of more units."""
        players = game.active[0].nonzero()[:, 0]
        most = int(math.log2(max(2.0, TIMED_MACS / max(1, split.tail_macs))))
        sizes = sorted({min(len(players), 2), min(len(players), most)})
        points = []
        found: list[Estimate] = []

        def run() -> None:
            found[:] = estimate(game, Score(estimator="exact"), [0])

        for size in sizes:
            game.active = torch.zeros_like(game.active)
            game.active[0, players[:size]] = True
            points.append((2**size, self._seconds(run)))
        (few, before), (many, behind) = points[0], points[-1]
        each = 0.0 if many == few else max(0.0, behind - before) / (many - few)
        return max(0.0, before - few * each), each, found

    def _tables(
        self, column: int, estimates: list[Estimate]
    ) -> tuple[float, float, tuple[int, int, int]]:
        """Seconds per image to write its row and per shard to read it; bytes of the tables."""
        group = self.setup.groups[column]
        n_images = min(self.setup.job.cluster.images_per_task, len(self.setup.calibration))
        estimates = [estimates[i % len(estimates)] for i in range(n_images)]
        ids = self.setup.calibration.ids[:n_images]
        labels = torch.zeros(n_images, dtype=torch.int64)
        store = RunDirectory("memory://shapray-costs")
        sizes: list[int] = []

        def write() -> None:
            rows = shard_table(group.name, ids, labels, estimates)
            sizes[:1] = [publish_shard(store, group.name, 0, n_images, rows, "")]

        def read() -> None:
            shard = read_shard(store, group.name, group.n_units, 0, ids, "")
            scores, classes = aggregate_group(group.name, group.n_units, [shard])
            sizes[1:] = [
                store.publish_table("scores.parquet", [scores], SCORES),
                store.publish_table("class_scores.parquet", [classes], CLASS_SCORES),
            ]

        try:
            writing, reading = self._seconds(write), self._seconds(read)
        finally:
            store.fs.rm(store.root, recursive=True)
        return writing / n_images, reading, (sizes[0], sizes[1], sizes[2])

    def _seconds(self, run: Callable[[], object]) -> float:
        """Median time of a few runs; the one that warms up counts if it took long."""
        clock, _ = self._watch()
        found: list[float] = []
        until = time.perf_counter() + REPEAT_SECONDS
        while len(found) < 2 or (len(found) <= REPEATS and time.perf_counter() < until):
            self._wait()
            start = clock()
            run()
            self._wait()
            found.append(clock() - start)
            if found[-1] > REPEAT_SECONDS:
                return found[-1]
        return float(np.median(found[1:]))

    def _watch(self) -> tuple[Callable[[], float], float]:
        """A clock and its time: of the processor where there is one thread, as other programs on
        the machine do not add to it."""
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        return clock, clock()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


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
    index, coalitions = next(pairs.batches(permutations))
    rank = torch.cat([torch.arange(n) for n in torch.bincount(index).tolist()])  # in its image
    parts: list[tuple[int, Callable[[], object]]] = []
    for per_image in sorted({2, max(2, int(most / len(images)))}):
        chosen = rank < per_image
        run = partial(game.outputs, index[chosen], coalitions[chosen])
        parts.append((int(chosen.sum()), run))
    return parts


class _Pretended(Game):
    """A game that knows its outputs without its network: what it costs is the work around it."""

    def __init__(self, game: NetworkGame) -> None:
        self.game, self.n_players, self.active = game, game.n_players, game.active
        self.nobody = game.reference[:, 0]
        random = torch.Generator().manual_seed(0)
        effects = torch.randn(self.n_players, self.nobody.shape[1], generator=random)
        self.effects = (effects / math.sqrt(self.n_players)).to(self.nobody)
        everybody = self.outputs(torch.arange(len(self.active)), self.active)
        self.reference = torch.stack([self.nobody, everybody], 1)

    def _grown(self, sums: Tensor, sizes: Tensor) -> Tensor:
        """Effects that grow with the coalition: neither a sum nor out of the surrogate's reach."""
        return sums * (1 + sizes / self.n_players)

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        kept = coalitions.to(self.effects)
        sums = self._grown(kept @ self.effects, kept.sum(1, keepdim=True))
        return self.nobody[images.to(kept.device)] + sums

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        device = self.effects.device
        wanted, steps = wanted.to(device), torch.arange(orders.shape[1] + 1, device=device)
        sums = self.effects[orders.clamp(min=0).to(device)].cumsum(1)
        sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
        return (self.nobody[images.to(device), None] + self._grown(sums, steps[:, None]))[wanted]

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.game.value(images, outputs)

    def surrogate(self) -> tuple[Any, Any] | None:
        return self.game.surrogate()


def spread(labels: Tensor | None, n: int, n_chosen: int) -> np.ndarray:
    """Indices of some of `n` images, evenly from all labels, ascending."""
    order = np.arange(n) if labels is None else labels.argsort(stable=True).numpy()
    return np.sort(order[np.linspace(0, n - 1, n_chosen).round().astype(int)])


def _evenly(of: np.ndarray, n_active: np.ndarray, n: int) -> np.ndarray:
    """`n` of some images, from those with few to those with many active units; repeats if few."""
    order = of[n_active[of].argsort(kind="stable")]
    return order[np.linspace(0, len(order) - 1, n).round().astype(int)]


def _is_exact(n_active: int, score: Score) -> bool:
    return n_active <= MAX_EXACT_PLAYERS and is_exact(int(n_active), score)
