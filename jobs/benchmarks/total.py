"""Time to a given error of the scores against all images that a network will meet.

    python -m jobs.benchmarks.total --readme         # about an hour and a half on one quiet core

Run from the repository's folder; `--networks resnet20 --groups 'layer3.*'` runs some groups again
and leaves the others.

A score is a mean over calibration images, and it stands for the mean over all of them. With n
images its squared error is (B + V) / n: B is the variance of Shapley values over the images, V that
of an image's sampling, both means over the units. The error asked for is the one that 256 images
have that are sampled at 8 permutations. Every way of computing scores may choose its number of
images, and its price for each:

- *ours*: what the pilot chooses with images to spare, the pilot's own time in it; and what it
  chooses where 256 images are all there are;
- the *loop* of Ancona et al. shares its permutations among all images, so that their error does not
  average out over them: B / n + S / P + W / (n P) for P permutations, by the best split of both;
- Captum's and shapiq's estimators, one image after the other, at 2, 4 or 8 permutations' worth.

B comes from all `--images`, V, S and W from some of them. Times are processor times on one thread,
the network's head for every image in them. What the errors say of themselves is measured on draws
of 256 images: how often the mean of all others is within two total errors, of the draw's and of
theirs.
"""

import argparse
import math
import pickle
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from jobs.benchmarks.networks import Network, load, machine, selected
from jobs.benchmarks.peers import PEERS, SLOW, SharedLoop, peer_estimates
from jobs.benchmarks.results import (
    RESULTS,
    Row,
    fill,
    markdown,
    merge,
    met,
    number,
    provenance,
    read,
)
from shapray.config import Score
from shapray.engine.score import score_images, try_images
from shapray.network.group import Group
from shapray.shapley.estimators import Estimate
from shapray.shapley.pilot import Price
from shapray.storage.aggregate import aggregate_group
from shapray.worker.rows import shard_table
from shapray.worker.survey import spread

PATH = RESULTS / "total.parquet"
KEYS = ("network", "group")
CACHE = Path("runs/benchmark-population")  # git ignores runs/
IMAGES = {
    "resnet20": "calibration",
    "resnet56": "calibration",
    "digits": "train",
    "digits_vgg": "train",
}
GROUPS = {"resnet56": ("layer1.4.conv1", "layer2.4.conv1", "layer3.4.conv1", "layer3.8.conv1")}
GIVEN, USUAL = 256, Price(8)
TOLD_IMAGES = 64  # that V, S and W come from, and times
PILOT_IMAGES, PEER_IMAGES, LOOP_PERMUTATIONS = 16, 16, 12
PEER_PRICES, PEER_SEEDS = (2, 4, 8), 2
DRAWS = 50

T = TypeVar("T")


class GroupTotals:
    """What one group's errors are made of, and how long they take."""

    def __init__(self, network: Network, group: Group, exact_max_players: int) -> None:
        self.network, self.group = network, group
        self.split = network.split(group)
        self.score = Score(exact_max_players=exact_max_players)
        n = len(network.images)
        self.some = spread(network.labels, n, min(TOLD_IMAGES, n)).tolist()

    def estimates(self, price: Price, images: Sequence[int]) -> list[Estimate]:
        """As a job with this price would score them."""
        network = self.network
        return score_images(
            self.split,
            network.images[list(images)],
            network.labels[list(images)],
            [network.image_ids[i] for i in images],
            self.score,
            price,
            list(images),
        )

    def of_all(self, price: Price) -> list[Estimate]:
        """Of all images; kept in a file."""
        network = self.network
        how = f"{price.permutations}{price.by}{price.told_every or ''}"
        how += f"-{self.score.exact_max_players}"
        name = f"{network.name}-{self.group.name}-{how}-{network.digest[:12]}.pickle"
        path = CACHE / name
        if not path.exists():
            step, n = TOLD_IMAGES, len(network.images)
            found = [
                one
                for first in range(0, n, step)
                for one in self.estimates(price, range(first, min(first + step, n)))
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(found))
        return list(pickle.loads(path.read_bytes()))

    def row(self) -> Row:
        network = self.network
        n = len(network.images)
        piloted = spread(network.labels, n, PILOT_IMAGES).tolist()
        (spare_pilot, spare), (given_pilot, given) = (
            self._pilot(piloted, to_spare=to_spare) for to_spare in (True, False)
        )
        every = self.of_all(given)
        values = np.stack([one.shapley_value for one in every])
        sampling = self._sampling(given)
        variance = float(values.var(0, ddof=1).mean() - sampling)
        usual = self._sampling(USUAL)
        target = (variance + usual) / GIVEN
        row: Row = {
            "network": network.name,
            "group": self.group.name,
            "n_units": self.group.n_units,
            "n_images": n,
            "exact": float(np.mean([one.estimator == "exact" for one in every])),
            "image_variance": variance,
            "usual_variance": usual,
            "relative_error": math.sqrt(target / float(np.square(values.mean(0)).mean())),
            "usual_seconds": GIVEN * self._seconds(USUAL),
        }
        for name, price, pilot in (("given", given, given_pilot), ("spare", spare, spare_pilot)):
            left, seconds = self._sampling(price), self._seconds(price)
            needed = GIVEN if name == "given" else (variance + left) / target
            row |= {
                f"{name}_permutations": price.permutations,
                f"{name}_by": price.by,
                f"{name}_images": needed,
                f"{name}_pilot_seconds": pilot,
                f"{name}_seconds": needed * seconds + pilot,
                f"{name}_error": math.sqrt((variance + left) / needed / target),
            }
        row |= self._loop(variance, target) | self._peers(variance, target)
        row |= self._coverage(every)
        return row

    def _pilot(self, images: Sequence[int], to_spare: bool) -> tuple[float, Price]:
        """Seconds, and the price that was chosen."""
        network = self.network
        seconds, found = timed(
            lambda: try_images(
                self.split,
                network.images[list(images)],
                network.labels[list(images)],
                [network.image_ids[i] for i in images],
                self.score,
                to_spare=to_spare,
            )
        )
        option = found.best() if to_spare else found.least(GIVEN, None)
        return seconds, option.price

    def _sampling(self, price: Price) -> float:
        """V: mean over units and images of an image's own sampling variance."""
        told = Price(4, "permutations") if price.permutations == 2 else price
        found = self.estimates(told, self.some)
        mean = float(np.mean([np.square(one.standard_error).mean() for one in found]))
        return mean * told.permutations / price.permutations

    def _seconds(self, price: Price) -> float:
        """Per image."""
        seconds, _ = timed(lambda: self.estimates(price, self.some))
        return seconds / len(self.some)

    def _loop(self, variance: float, target: float) -> Row:
        some = self.some
        labels = self.network.labels[some]
        head, game = timed(
            lambda: self.split.game(self.network.images[some], labels, self.score.value)
        )
        loop = SharedLoop(self.split, game)
        random = np.random.default_rng(0)
        orders = [random.permutation(self.group.n_units) for _ in range(LOOP_PERMUTATIONS)]
        loop.contributions(orders[0])
        seconds, found = timed(lambda: [loop.contributions(order).numpy() for order in orders])
        drawn = np.stack(found)  # (n_permutations, n_images, n_units)
        own = float(drawn.var(0, ddof=1).mean())  # W + S of one image
        of_mean = float(drawn.mean(1).var(0, ddof=1).mean())
        shared = max(0.0, (of_mean * len(some) - own) / (len(some) - 1))
        each = seconds / LOOP_PERMUTATIONS / len(some)
        best = math.inf, 0.0, 0
        for n_permutations in range(1, 2**16):
            left = target - shared / n_permutations
            if left <= 0:
                continue
            images = (variance + (own - shared) / n_permutations) / left
            spent = images * (n_permutations * each + head / len(some))
            if spent > 4 * best[0]:
                break
            best = min(best, (spent, images, n_permutations))
        return {"loop_seconds": best[0], "loop_images": best[1], "loop_permutations": best[2]}

    def _peers(self, variance: float, target: float) -> Row:
        some = self.some[:PEER_IMAGES]
        labels = self.network.labels[some]
        head, game = timed(
            lambda: self.split.game(self.network.images[some], labels, self.score.value)
        )
        row: Row = {}
        for name in PEERS.keys() - SLOW:
            best = math.inf
            for n_permutations in PEER_PRICES:
                drawn, spent = [], 0.0
                for seed in range(PEER_SEEDS):
                    seeds = [self.network.seeds(seed, self.group)[i] for i in some]
                    run = partial(
                        peer_estimates, PEERS[name], game, len(some), n_permutations, seeds
                    )
                    seconds, (found, _) = timed(run)
                    drawn.append(found)
                    spent += seconds
                left = float(np.stack(drawn).var(0, ddof=1).mean())
                each = spent / PEER_SEEDS / len(some) + head / len(some)
                best = min(best, (variance + left) / target * each)
            row[name] = best
        return row

    def _coverage(self, found: Sequence[Estimate]) -> Row:
        """How often the mean of the images that were not drawn is within two errors."""
        random = np.random.default_rng(0)
        n = len(found)
        counts: dict[str, list[float]] = {"mean": [], "mean_abs": [], "balanced": []}
        for _ in range(DRAWS):
            order = random.permutation(n)
            drawn, rest = self._scores(found, order[:GIVEN]), self._scores(found, order[GIVEN:])
            for name in ("mean", "mean_abs"):
                counts[name].append(_covered(drawn, rest, name))
            chosen, others = _balanced(self.network.labels.numpy(), random)
            drawn = self._scores(found, chosen, balanced=True)
            rest = self._scores(found, others, balanced=True)
            counts["balanced"].append(_covered(drawn, rest, "mean"))
        return {f"covered_{name}": float(np.mean(shares)) for name, shares in counts.items()}

    def _scores(
        self, found: Sequence[Estimate], chosen: np.ndarray, balanced: bool = False
    ) -> pa.Table:
        ids = [self.network.image_ids[i] for i in chosen]
        rows = shard_table(
            self.group.name, ids, self.network.labels[chosen], [found[i] for i in chosen]
        )
        return aggregate_group(self.group.name, self.group.n_units, [rows], balanced)[0]


def _covered(drawn: pa.Table, rest: pa.Table, name: str) -> float:
    prefix = "" if name == "mean" else f"{name}_"
    errors = np.hypot(*(part[f"{prefix}total_error"].to_numpy() for part in (drawn, rest)))
    apart = np.abs(drawn[name].to_numpy() - rest[name].to_numpy())
    return float((apart <= 2 * errors).mean())


def _balanced(labels: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A draw of as many images of every label, and of the others as many of every label again."""
    of_labels = [random.permutation(np.flatnonzero(labels == one)) for one in np.unique(labels)]
    each, least = GIVEN // len(of_labels), min(map(len, of_labels))
    return (
        np.concatenate([images[:each] for images in of_labels]),
        np.concatenate([images[each:least] for images in of_labels]),
    )


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds, and what came of it."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def table() -> str:
    """Markdown: time to an error, the price of images that are given, and what errors say."""
    rows = sorted(read(PATH), key=lambda row: (row["network"] != "resnet20", row["network"]))
    times, given, sure = [], [], []
    for row in rows:
        name = f"{row['network']} {row['group']}"
        asked = row["network"] == "resnet20"
        peers = [row[peer] / row["spare_seconds"] for peer in PEERS.keys() - SLOW]
        loop = row["loop_seconds"] / row["spare_seconds"]
        less = row["usual_seconds"] / row["spare_seconds"]
        times.append(
            [
                name,
                f"{row['relative_error']:.1%}",
                f"{row['spare_images']:.0f} × {row['spare_permutations']}",
                number(row["spare_seconds"]),
                f"{row['loop_images']:.0f} × {row['loop_permutations']}",
                met(loop, 40, at_least=True) if asked else number(loop),
                met(less, 3, at_least=True),
                number(row["Captum ShapleyValueSampling"] / row["spare_seconds"]),
                number(min(peers)),
            ]
        )
        of_usual = row["usual_variance"] / row["image_variance"]
        of_chosen = row["given_error"] ** 2 * (1 + of_usual) - 1
        given.append(
            [
                name,
                f"{row['given_permutations']} {row['given_by']}",
                met(row["usual_seconds"] / row["given_seconds"], 4, at_least=True),
                met(row["given_error"], 1.2, at_least=False),
                f"{of_usual:.1%}",
                f"{of_chosen:.1%}",
                f"{row['exact']:.1%}",
            ]
        )
        sure.append(
            [name, *(f"{row[f'covered_{key}']:.1%}" for key in ("mean", "balanced", "mean_abs"))]
        )
    header = [
        "group",
        "error",
        "ours: images × permutations",
        "seconds",
        "loop: images × permutations",
        "loop ÷ ours (asked)",
        "256 × 8 permutations ÷ ours (asked)",
        "Captum ÷ ours",
        "best other ÷ ours",
    ]
    return "\n\n".join(
        [
            provenance(PATH),
            "Time to the total error of 256 images at 8 permutations, images to spare. *error*: "
            "root mean square over the units, of the scores' root mean square.",
            markdown(header, times),
            "256 images, all of them taken: what the pilot chooses against 8 permutations.",
            markdown(
                [
                    "group",
                    "permutations",
                    "times less time (asked)",
                    "total error ÷ that of 8 (asked)",
                    "V ÷ B at 8",
                    "V ÷ B chosen",
                    "images that are exact",
                ],
                given,
            ),
            f"Share of units whose mean over all other images is within two total errors, over "
            f"{DRAWS} draws of {GIVEN} images (95.4 % would be right).",
            markdown(["group", "mean", "mean, as many of every label", "mean of absolutes"], sure),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to an error against all images.")
    parser.add_argument("--networks", nargs="+", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--groups", nargs="+", help="patterns; default: all, of ResNet-56 some")
    parser.add_argument("--images", type=int, default=1200, help="that stand for all")
    parser.add_argument("--exact-max-players", type=int, default=Score().exact_max_players)
    parser.add_argument("--tables", action="store_true", help="only print tables of what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        print(machine(), flush=True)
        for name in options.networks:
            network = load(name, options.images, images=IMAGES[name])
            for group in selected(network, options.groups or GROUPS.get(name, ("*",))):
                row = GroupTotals(network, group, options.exact_max_players).row()
                merge(PATH, [row], KEYS)
                print(row, flush=True)
    text = table()
    print(text)
    if options.readme:
        fill("total", text)


if __name__ == "__main__":
    main()
