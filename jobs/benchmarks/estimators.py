"""Error of the scores against evaluations and against seconds: this package and its peers.

    python -m jobs.benchmarks.reference --processes 2     # once: the references, long
    python -m jobs.benchmarks.estimators --readme         # about 50 minutes on one quiet core

Run from the repository's folder. `--groups 'layer3.*' --images 16 --permutations 2 4 --seeds 2` is
a short run; results of groups that are not run again stay in results/estimators.parquet.

error = |estimate - reference|^2 / |reference|^2 of the scores averaged over the images. The
reference's own error, known from its pairs, is subtracted in the tables: a squared distance to a
reference that errs independently is larger by just that. All times are processor times, on one
thread, of the estimator alone: the network is split and the head has run before, for every method
alike.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from jobs.benchmarks import tables
from jobs.benchmarks.networks import (
    NETWORKS,
    Network,
    load,
    machine,
    selected,
    wide_instructions,
)
from jobs.benchmarks.peers import PEERS, SLOW, SharedLoop, peer_estimates
from jobs.benchmarks.plain import PlainGame
from jobs.benchmarks.plots import plot_estimators
from jobs.benchmarks.reference import CACHE, Reference, load_reference
from jobs.benchmarks.results import RESULTS, Row, fill, merge, read
from shapray.config import Score
from shapray.network.group import Group
from shapray.shapley.estimators import Estimate, estimate, is_exact
from shapray.shapley.game import Game

PATH = RESULTS / "estimators.parquet"
PEER_IMAGES = {"layer": 16, "conv": 32, "fc": 32}
LOOP_PERMUTATIONS = 40


class GroupBenchmark:
    """All methods on one group, as rows of the results."""

    def __init__(self, network: Network, group: Group, reference: Reference, peer_images: int):
        self.network, self.group, self.reference = network, group, reference
        self.sizes = sorted({len(network.images), min(peer_images, len(network.images))})
        split = network.split(group)
        self.game = network.game(split)
        low = any(name.endswith("bf16") for name in wide_instructions())
        self.low_game = network.game(network.split(group, "bfloat16")) if low else None
        self.loop = SharedLoop(split, self.game)
        self.loop_found: list[tuple[np.ndarray, float]] = []
        self.rows: list[Row] = []
        for game in (self.game, self.low_game):  # once before anything is timed
            if game is not None:
                estimate(game, Score(estimator="permutation", permutations=4), self.seeds(-1))

    def seeds(self, seed: int) -> list[int]:
        return self.network.seeds(seed, self.group)

    def add(
        self,
        method: str,
        permutations: int,
        seed: int,
        values: np.ndarray,
        *,
        evaluations: float,
        seconds: float,
    ) -> None:
        """A row per number of images that the methods are compared on.

        Args:
            values: (n_images, n_units).
            evaluations: per image.
            seconds: for all of `values`.
        """
        for n_images in self.sizes:
            if n_images > len(values):
                continue
            truth = self.reference.values[:n_images]
            errors = values[:n_images] - truth
            size = (truth.mean(0) ** 2).sum()
            self.rows.append(
                {
                    "network": self.network.name,
                    "group": self.group.name,
                    "n_units": self.group.n_units,
                    "method": method,
                    "permutations": permutations,
                    "seed": seed,
                    "n_images": n_images,
                    "evaluations_per_image": evaluations,
                    "seconds": seconds * n_images / len(values),
                    "error": float((errors.mean(0) ** 2).sum() / size),
                    # what `error` would be on average if the images' errors were independent and
                    # unbiased: steadier, and it flatters a biased estimator
                    "independent_error": float((errors**2).sum() / n_images**2 / size),
                    "reference_error": self.reference.error(n_images),
                    "reference_exact": self.reference.n_exact,
                }
            )

    def package(self, permutations: int, seed: int, *, headline: bool) -> None:
        """This package; exact where the job would be; at the headline's budget also without its
        surrogate, and in bfloat16 where the machine has that."""
        score = Score(estimator="permutation", permutations=permutations)
        hybrid = Score(permutations=permutations)
        self._package(tables.OWN, self.game, score, seed)
        if any(is_exact(k, hybrid) for k in self.game.active.sum(1).tolist()):
            self._package(tables.HYBRID, self.game, hybrid, seed)
        if headline:
            self._package(tables.PLAIN, PlainGame(self.game), score, seed)
            if self.low_game is not None:
                self._package(tables.LOW, self.low_game, score, seed)

    def _package(self, method: str, game: Game, score: Score, seed: int) -> None:
        start = time.process_time()
        found: list[Estimate] = estimate(game, score, self.seeds(seed))
        assert isinstance(score.permutations, int)
        self.add(
            method,
            score.permutations,
            seed,
            np.stack([e.shapley_value for e in found]),
            evaluations=float(np.mean([e.n_evaluations for e in found])),
            seconds=time.process_time() - start,
        )

    def walk_loop(self, n_permutations: int, seed: int) -> None:
        """More permutations of the shared loop, each timed."""
        random = np.random.default_rng(seed)
        for _ in range(n_permutations):
            order = random.permutation(self.group.n_units)
            start = time.process_time()
            values = self.loop.contributions(order).numpy()
            self.loop_found.append((values, time.process_time() - start))

    def add_loop(self) -> None:
        """Means of 1, 2, 4, .. permutations of the loop, from disjoint sets of them."""
        n_found, size = len(self.loop_found), 1
        steps = self.group.n_units - 1
        while size <= n_found:
            for number in range(n_found // size):
                part = self.loop_found[number * size : (number + 1) * size]
                self.add(
                    tables.LOOP,
                    size,
                    number,
                    np.mean([values for values, _ in part], axis=0),
                    evaluations=size * steps,
                    seconds=sum(seconds for _, seconds in part),
                )
            size *= 2

    def peers(self, permutations: int, seed: int) -> None:
        for method, peer in PEERS.items():
            if method in SLOW and seed > 0:
                continue
            start = time.process_time()
            values, evaluations = peer_estimates(
                peer, self.game, self.sizes[0], permutations, self.seeds(seed)
            )
            seconds = time.process_time() - start
            self.add(method, permutations, seed, values, evaluations=evaluations, seconds=seconds)


def run_group(network: Network, group: Group, options: argparse.Namespace) -> None:
    """One group, the methods taking turns; its rows are saved."""
    reference = load_reference(network, group, options.cache, options.reference_permutations)
    per_layer = next(n for start, n in PEER_IMAGES.items() if group.name.startswith(start))
    start = time.process_time()
    bench = GroupBenchmark(network, group, reference, options.peer_images or per_layer)
    headline = max(
        p for p in options.permutations if p <= max(tables.HEADLINE, options.permutations[0])
    )
    for seed in range(options.seeds):
        for permutations in options.permutations:
            bench.package(permutations, seed, headline=permutations == headline)
            if seed < options.peer_seeds:
                bench.peers(permutations, seed)
        bench.walk_loop(-(-options.loop_permutations // options.seeds), seed)
    bench.add_loop()
    merge(PATH, bench.rows, ("network", "group"))
    print(f"{network.name} {group.name}: {time.process_time() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Error against evaluations and against seconds.")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--groups", nargs="+", default=["*"], help="glob patterns")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--permutations", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-seeds", type=int, default=2)
    parser.add_argument("--peer-images", type=int, help="default: 16 or 32")
    parser.add_argument("--loop-permutations", type=int, default=LOOP_PERMUTATIONS)
    parser.add_argument("--reference-permutations", type=int, help="default: by layer")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--tables", action="store_true", help="only print tables of what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        print(machine(), flush=True)
        for name in options.networks:
            network = load(name, options.images)
            for group in selected(network, options.groups):
                run_group(network, group, options)
        plot_estimators(read(PATH), RESULTS)
    text = tables.estimators(PATH)
    print(text)
    if options.readme:
        fill("estimators", text)


if __name__ == "__main__":
    main()
