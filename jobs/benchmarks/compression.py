"""Which criterion gives the best network at equal multiply-adds, and which repair.

    python -m jobs.benchmarks.compression --networks resnet20 --readme     # 3 hours on a quiet core

Run from the repository's folder. `--draws 0 --criteria mean_abs obs --shares 0.5` is a short run.
Results are saved bit by bit, in results/compression.parquet, and what is there is not measured
again: a run that was stopped goes on. Two runs at a time would lose each other's results.

A draw is 256 calibration images; the evaluation images take part in nothing but the measurement.
For each ranking and share of the whole network's multiply-adds the same is done: losses of every
group alone (`repair.curves`), counts by `cuts.Chooser` (allocation `measured`), cut, repair by
least squares. Some rankings' cuts are repaired otherwise, too:

- `grail`: with a ridge of 1e-3, and with that of three that comes nearest to the whole network on
  the calibration images; on our cut, and on one chosen by the losses that GRAIL itself leaves;
  with BatchNorm statistics taken anew; and step by step, which goes beyond the paper;
- `batchnorm` only, and none.
"""

import argparse
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from jobs.benchmarks import compared, grail
from jobs.benchmarks.draws import Draw, Trained, evaluation, load_draw, load_trained, ranking
from jobs.benchmarks.networks import machine
from jobs.benchmarks.repairs import FAMILIES, OWN, Repairs, outputs
from jobs.benchmarks.results import RESULTS, Row, fill, merge, read
from shapray.config import Prune
from shapray.pruning.chooser import Chooser
from shapray.pruning.evaluate import count_macs
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.curves import loss_curves

PATH = RESULTS / "compression.parquet"
KEYS = ("network", "draw", "criterion", "share", "allocation", "repair")
NETWORKS = ("resnet20", "resnet56")
FIRST = (  # of all draws, before the others of any
    "mean_abs",
    "taylor",
    "obs",
    "obd",
    "obs & mean_abs",
    "mean",
    "random-0",
)
OTHERS = (
    "obd & mean_abs",
    "taylor & mean_abs",
    "mean_abs + 2*standard_error",
    "mean_abs + 1*std",
    "jacobian",
    "taylor_signed",
    "l1_norm",
    "l2_norm",
    "batchnorm_scale",
    "apoz",
    "random-1",
    "random-2",
    "leave_one_out",
)
BY_GRAIL = ("mean_abs", "taylor", "obs")
NOT_REPAIRED = ("mean_abs",)


class Judge:
    """The images that networks are measured on, and what the whole network says of them."""

    def __init__(self, whole: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.reference = outputs(whole, images)

    def measure(self, network: nn.Module) -> Row:
        """Size, and how good it is, in all and image by image."""
        found = outputs(network, self.images)
        hits = (found.argmax(1) == self.labels).numpy()
        losses = nn.functional.cross_entropy(found.double(), self.labels, reduction="none")
        parameters, multiply_adds = count_macs(network, self.images[:1])
        return {
            "multiply_adds": multiply_adds,
            "parameters": parameters,
            "top1": float(hits.mean()),
            "loss": float(losses.mean()),
            "divergence": grail.divergence(found, self.reference),
            **compared.packed(hits, losses.numpy()),
        }


class RankingBenchmark:
    """All cuts and repairs by one ranking on one draw.

    Args:
        there: rows of results that there are of it; they say how many units went.
    """

    def __init__(self, trained: Trained, draw: Draw, name: str, there: Sequence[Row]) -> None:
        self.trained, self.draw, self.there = trained, draw, there
        self.ranking: Ranking = ranking(trained, draw, name)
        self.repairs = Repairs(trained, draw.images)

    def cut(self, share: float, allocation: str) -> dict[str, list[int]]:
        """Group -> units that go."""
        for row in self.there:
            if (row["share"], row["allocation"]) == (share, allocation):
                orders = self.ranking.orders
                return {
                    group.name: sorted(orders[group.name][: group.n_units - kept])
                    for group, kept in zip(self.trained.groups, row["kept"], strict=True)
                }
        n_units = {group.name: group.n_units for group in self.trained.groups}
        chooser = Chooser(Prune(macs=share, criteria=()), n_units, self.trained.sizes)
        curves = self._curves if allocation == OWN else self._curves_by_grail
        return chooser.choose(self.ranking, {self.ranking.name: curves}, "macs", share)

    def rows(self, share: float, family: str, allocation: str, judge: Judge) -> Iterator[Row]:
        """A row for each network of a family of repairs."""
        cut = self.cut(share, allocation)
        start = time.process_time()
        for repair, network, ridge in FAMILIES[family](self.repairs, cut):
            seconds = time.process_time() - start
            yield {
                "share": share,
                "allocation": allocation,
                "repair": repair,
                "ridge": ridge,
                "kept": [g.n_units - len(cut[g.name]) for g in self.trained.groups],
                "seconds": seconds,
                **judge.measure(network),
            }
            start = time.process_time()

    @functools.cached_property
    def _curves(self) -> dict[str, list[float]]:
        """Group -> its losses with so many of its units gone, repaired by least squares."""
        model, folded, images = self.trained.model, self.trained.folded, self.draw.images
        return {
            group.name: loss_curves(
                model, group, {"": self.ranking.orders[group.name]}, images, True, folded
            )[""]
            for group in self.trained.groups
        }

    @functools.cached_property
    def _curves_by_grail(self) -> dict[str, list[float]]:
        """The same, repaired by GRAIL."""
        model, folded, images = self.trained.model, self.trained.folded, self.draw.images
        assert isinstance(folded, fx.GraphModule)
        orders, grams = self.ranking.orders, self.repairs.grams
        return {
            group.name: grail.loss_curves(model, folded, group, orders[group.name], images, grams)
            for group in self.trained.groups
        }


def asked(criterion: str) -> list[tuple[str, str]]:
    """Families of repairs and the allocations with which they are measured, by criterion."""
    found = [(OWN, OWN)]
    if criterion in NOT_REPAIRED:
        found.append(("none", OWN))
    if criterion in BY_GRAIL:
        found += [("grail", OWN), ("grail", "grail"), ("grail, step by step", OWN)]
    return found


def run(
    trained: Trained, draw: Draw, name: str, judge: Judge, shares: Sequence[float], path: Path
) -> None:
    """One ranking on one draw: what is not there yet is measured, and saved bit by bit."""
    here = {"network": trained.name, "draw": draw.number, "criterion": name}
    there = [row for row in read(path) if here.items() <= row.items()]
    known = {(row["share"], row["repair"], row["allocation"]) for row in there}
    missing = [
        (share, *way) for share in shares for way in asked(name) if (share, *way) not in known
    ]
    if missing:
        start = time.monotonic()
        bench = RankingBenchmark(trained, draw, name, there)
        for share, family, allocation in missing:
            rows = [here | row for row in bench.rows(share, family, allocation, judge)]
            merge(path, rows, KEYS)
        seconds = time.monotonic() - start
        print(f"{trained.name}, draw {draw.number}: {name}: {seconds:.0f} s", flush=True)


def run_network(name: str, options: argparse.Namespace) -> None:
    """All draws' most telling rankings first, then the others of all draws."""
    trained = load_trained(name)
    judge = Judge(trained.model, *evaluation())
    if not any((row["network"], row["repair"]) == (name, "whole") for row in read(PATH)):
        whole = {"criterion": "whole", "share": 1.0, "allocation": "whole", "repair": "whole"}
        merge(PATH, [{"network": name, "draw": -1} | whole | judge.measure(trained.model)], KEYS)
    for names in (FIRST, OTHERS):
        for number in options.draws:
            draw = load_draw(name, number)
            for criterion in names:
                if criterion in options.criteria:
                    run(trained, draw, criterion, judge, options.shares, PATH)


def main() -> None:
    parser = argparse.ArgumentParser(description="Networks of one size by criteria and repairs.")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    every = (*FIRST, *OTHERS)
    parser.add_argument("--criteria", nargs="+", default=every, choices=every)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--tables", action="store_true", help="only print tables of what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        print(machine(), flush=True)
        for name in options.networks:
            run_network(name, options)
    from jobs.benchmarks.plots import plot_compression  # noqa: PLC0415  # to measure takes no plots

    plot_compression(read(PATH), RESULTS)
    text = compared.compression(PATH)
    print(text)
    if options.readme:
        fill("compression", text)


if __name__ == "__main__":
    main()
