"""How much a network loses while the units of one group go, by what orders them.

    python -m jobs.benchmarks.robustness --readme         # about an hour on one quiet core

Run from the repository's folder. `--groups 'layer3.*' --draws 1 --values` is a short run; scores
are kept in runs/benchmark-robustness, and what results/robustness.parquet has is not run again.

Layer by layer, the units of one group are removed one after the other, those with the least score
first, all other groups whole and nothing repaired, until one is left. After each removal the loss
is measured: the cross-entropy on the evaluation images, which no score has seen, minus the whole
network's. A group's number is its mean over the removals 1 .. n_units - 1, the network's is the
mean over its groups. (With all units gone all orders are the same.)

Scores are from calibration images, several draws of them; those by weights need none, those drawn
at random have several seeds. Shapley values are computed as `shapray.score` does unless told
otherwise, but for the number of permutations; *sampled* are those of the same images by sampling
only.

Source: Ancona, Oztireli, Gross 2020, "Shapley Value as Principled Metric for Structured Network
Pruning", from which the measurement is.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import shapray
from jobs.benchmarks.networks import NETWORKS, VALUE, Network, load, machine, open_set, selected
from jobs.benchmarks.orders import robustness
from jobs.benchmarks.plots import plot_robustness
from jobs.benchmarks.results import RESULTS, Row, fill, merge, read
from shapray.engine.network_game import NetworkSplit
from shapray.network.group import Group
from shapray.pruning.criteria import CRITERIA, criterion

PATH = RESULTS / "robustness.parquet"
CACHE = Path("runs/benchmark-robustness")  # git ignores runs/
KEYS = ("network", "group", "method", "draw")
SCORES = ("mean", "mean_abs")
RANDOM_SEEDS = 5
PERMUTATIONS = 4
VALUES = ("target_logit", "logit_margin", "target_probability", "neg_kl_divergence")
Scores = dict[str, np.ndarray]  # group -> (n_units,)


class Scored:
    """Scores of all units by every method, from one draw of calibration images."""

    def __init__(self, network: Network, draw: int, options: argparse.Namespace) -> None:
        self.network, self.draw, self.permutations = network, draw, options.permutations

    def methods(self) -> Iterator[tuple[str, int, Scores]]:
        """Method, draw or seed, scores; what does not look at images comes with the first draw."""
        names = [group.name for group in self.network.groups]
        hybrid = self._shapley("hybrid", VALUE, names)
        n_exact = _by_group(hybrid, "n_exact")
        enumerated = [group for group in names if n_exact[group].any()]
        sampled = self._shapley("permutation", VALUE, enumerated) if enumerated else hybrid
        for score in SCORES:
            by_hybrid = _by_group(hybrid, score)
            yield f"hybrid, {score}", self.draw, by_hybrid
            # where nothing is enumerated, both are the same to the bit
            yield f"sampled, {score}", self.draw, by_hybrid | _by_group(sampled, score)
        for name, needs in CRITERIA.items():
            if name in ("random", "shapley_sampled"):  # with seeds; as above
                continue
            if needs.images or self.draw == 0:
                try:
                    yield name, self.draw, self._of_criterion(name)
                except ValueError as error:  # it says nothing of this network
                    print(f"left out: {error}", flush=True)
        if self.draw == 0:
            for seed in range(RANDOM_SEEDS):
                yield "random", seed, criterion("random", *self._inputs, seed=seed)

    def by_values(self, values: Sequence[str]) -> Iterator[tuple[str, int, Scores]]:
        """The same for Shapley values of other value functions."""
        for value in values:
            table = self._shapley("hybrid", value, [group.name for group in self.network.groups])
            for score in SCORES:
                yield f"hybrid, {value}, {score}", self.draw, _by_group(table, score)

    @property
    def _inputs(self) -> tuple[torch.nn.Module, list[Group], Tensor, Tensor]:
        return self.network.model, self.network.groups, self.network.images, self.network.labels

    def _shapley(self, estimator: str, value: str, groups: Sequence[str]) -> pa.Table:
        """``scores.parquet`` of some groups."""
        path = self._path(f"{estimator}-{value}-{self.permutations}")
        if not path.exists():
            found = shapray.score(
                self.network.model,
                self.network.images,
                self.network.labels,
                groups=groups,
                ids=self.network.image_ids,
                estimator=estimator,
                value=value,
                permutations=self.permutations,
                precision="float32",
                progress=False,
            )
            _write(found.scores, path)
        return pq.read_table(path)

    def _of_criterion(self, name: str) -> Scores:
        path = self._path(name)
        if not path.exists():
            found = criterion(name, *self._inputs)
            names = [group for group, values in found.items() for _ in values]
            values = np.concatenate(list(found.values()))
            _write(pa.table({"group": names, "score": values}), path)
        return _by_group(pq.read_table(path), "score")

    def _path(self, what: str) -> Path:
        return CACHE / f"{self.network.digest[:12]}-{what}.parquet"


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".tmp")
    pq.write_table(table, waiting)
    waiting.replace(path)


def _by_group(table: pa.Table, column: str) -> Scores:
    groups, values = np.array(table["group"].to_pylist()), table[column].to_numpy()
    return {group: values[groups == group] for group in dict.fromkeys(groups.tolist())}


def removals(scores: np.ndarray) -> Tensor:
    """What is kept after each removal, the least score first: (n_units - 1, n_units) bool."""
    order = np.argsort(scores, kind="stable")
    place = torch.from_numpy(np.argsort(order))
    return place[None] > torch.arange(len(scores) - 1)[:, None]


@torch.inference_mode()
def loss_increases(split: NetworkSplit, images: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Cross-entropy of every image with some units only, minus that with all.

    What is the same for an image, but for units that are zero there anyway, is computed once.

    Args:
        kept: (n, n_units) bool.
    Returns:
        (n_images, n) float64.
    """
    found = []
    at_once = split.images_at_once(len(kept) // split.group.n_units + 1)
    for part, of_part in zip(images.split(at_once), labels.split(at_once), strict=True):
        game = split.game(part, of_part, VALUE)
        coalitions, places = [], []
        n_before = 0
        for active in game.active:
            distinct, place = torch.unique(kept & active, dim=0, return_inverse=True)
            coalitions.append(distinct)
            places.append(place + n_before)
            n_before += len(distinct)
        lengths = torch.tensor([len(distinct) for distinct in coalitions])
        rows = torch.arange(len(part)).repeat_interleave(lengths)
        values = game.value(rows, game.outputs(rows, torch.cat(coalitions)).double())
        whole = game.value(torch.arange(len(part)), game.reference[:, 1].double())
        found.append(whole[:, None] - values[torch.stack(places)])
    return torch.cat(found)


def run_group(
    network: Network,
    group: Group,
    orders: Sequence[tuple[str, int, np.ndarray]],
    images: Tensor,
    labels: Tensor,
) -> None:
    """All orders of one group together; their rows are saved.

    Args:
        orders: method, draw, scores (n_units,).
        images: those that the loss is measured on.
    """
    start = time.process_time()
    kept = torch.cat([removals(scores) for _, _, scores in orders])
    increases = loss_increases(network.split(group), images, labels, kept)
    increases = increases.unflatten(1, (len(orders), -1))  # (n_images, n_orders, n_units - 1)
    rows: list[Row] = [
        {
            "network": network.name,
            "group": group.name,
            "n_units": group.n_units,
            "method": method,
            "draw": draw,
            "n_calibration": len(network.images),
            "n_evaluation": len(images),
            "by_removal": increases[:, place].mean(0).tolist(),
            # most of the file, and no interval needs more digits
            "by_image": increases[:, place].mean(1).numpy().round(4).tolist(),
        }
        for place, (method, draw, _) in enumerate(orders)
    ]
    merge(PATH, rows, KEYS)
    seconds = time.process_time() - start
    print(f"{network.name} {group.name}: {len(orders)} orders, {seconds:.0f} s", flush=True)


def measure(options: argparse.Namespace) -> None:
    """One draw after the other, so that there is something to see after the first; then the other
    value functions on the first draw."""
    for name in options.network:
        measured_on = open_set(name, "evaluation", options.evaluation_images)
        images = measured_on.load(0, len(measured_on))
        assert measured_on.labels is not None
        for step in range(options.draws + bool(options.values)):
            draw = step % options.draws
            network, start = load(name, options.images, draw), time.process_time()
            scored = Scored(network, draw, options)
            last = step == options.draws
            found = list(scored.by_values(options.values) if last else scored.methods())
            print(f"{name}, draw {draw}: scores {time.process_time() - start:.0f} s", flush=True)
            there = {tuple(row[key] for key in KEYS) for row in read(PATH)}
            for group in selected(network, options.groups):
                orders = [
                    (method, at, scores[group.name])
                    for method, at, scores in found
                    if (name, group.name, method, at) not in there
                ]
                if orders:
                    run_group(network, group, orders, images, measured_on.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss while units go, by what orders them.")
    parser.add_argument("--network", nargs="+", default=["resnet20"], choices=NETWORKS)
    parser.add_argument("--groups", nargs="+", default=["*"], help="glob patterns")
    parser.add_argument("--images", type=int, default=256, help="for calibration, of every draw")
    parser.add_argument("--evaluation-images", type=int, default=500)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--permutations", type=int, default=PERMUTATIONS)
    parser.add_argument("--values", nargs="*", default=VALUES, help="value functions besides")
    parser.add_argument("--tables", action="store_true", help="only print tables of what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        print(machine(), flush=True)
        measure(options)
    plot_robustness(read(PATH), RESULTS)
    text = robustness(PATH)
    print(text)
    if options.readme:
        fill("robustness", text)


if __name__ == "__main__":
    main()
