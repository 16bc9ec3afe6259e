"""Which criterion gives the best network at equal multiply-adds, and which repair.

    python -m jobs.benchmarks.compression --readme        # about 3 hours on one quiet core

Run from the repository's folder. `--draws 0 --criteria mean_abs obs --shares 0.5` is a short run.
Results are saved ranking by ranking, in results/compression.parquet, and what is there is not
measured again: a run that was stopped goes on.

A draw is 256 calibration images; the evaluation images take part in nothing but the measurement.
For each ranking and share of the whole network's multiply-adds the same is done: losses of every
group alone (`repair.curves`), counts by `cuts.Chooser` (allocation `measured`), cut, repair by
least squares. Some rankings' cuts are repaired otherwise, too:

- `grail`: as the paper has it, with a ridge of 1e-3, and with that of three that comes nearest to
  the whole network on the calibration images; on our cut, and on one chosen by what GRAIL itself
  leaves of each group's loss; each also with BatchNorm statistics taken anew;
- `batchnorm` only, and none.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from jobs.benchmarks import compared, grail
from jobs.benchmarks.draws import Draw, Trained, evaluation, load_draw, load_trained, ranking
from jobs.benchmarks.networks import machine
from jobs.benchmarks.results import RESULTS, Row, fill, merge, read
from shapray.config import Prune
from shapray.network.surgery import prune_model
from shapray.pruning.cuts import Chooser
from shapray.pruning.evaluate import count_macs
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.pruning.repair.curves import loss_curves
from shapray.pruning.repair.least_squares import least_squares

PATH = RESULTS / "compression.parquet"
KEYS = ("network", "draw", "criterion", "share")
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
IMAGES_AT_ONCE = 50


class Judge:
    """The images that networks are measured on, and what the whole network says of them."""

    def __init__(self, whole: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.reference = _outputs(whole, images)

    def measure(self, network: nn.Module) -> Row:
        """Size, and how good it is, in all and image by image."""
        outputs = _outputs(network, self.images)
        hits = (outputs.argmax(1) == self.labels).numpy()
        losses = nn.functional.cross_entropy(outputs.double(), self.labels, reduction="none")
        parameters, multiply_adds = count_macs(network, self.images[:1])
        return {
            "multiply_adds": multiply_adds,
            "parameters": parameters,
            "top1": float(hits.mean()),
            "loss": float(losses.mean()),
            "divergence": grail.divergence(outputs, self.reference),
            **compared.packed(hits, losses.numpy()),
        }


class RankingBenchmark:
    """All cuts and repairs by one ranking on one draw, as rows of the results."""

    def __init__(self, trained: Trained, draw: Draw, name: str, judge: Judge) -> None:
        self.trained, self.draw, self.name, self.judge = trained, draw, name, judge
        self.ranking: Ranking = ranking(trained, draw, name)
        self.chooser = Chooser(
            Prune(macs=0.5, criteria=()), {g.name: g.n_units for g in trained.groups}, trained.sizes
        )
        self.rows: list[Row] = []

    def run(self, shares: Sequence[float]) -> list[Row]:
        """Rows of all shares."""
        start = time.process_time()
        curves = self._curves()
        seconds = time.process_time() - start
        if self.name in BY_GRAIL:
            layers = [c.module for group in self.trained.groups for c in group.consumers]
            self.grams = grail.grams_of(self.trained.model, layers, self.draw.images)
            by_grail = self._curves_by_grail()
        for share in shares:
            cut = self._cut(curves, share)
            self._least_squares(cut, share, seconds)
            if self.name in NOT_REPAIRED:
                self._not_repaired(cut, share)
            if self.name in BY_GRAIL:
                self._grail(cut, share, "grail")
                self._grail(self._cut(by_grail, share), share, "grail, own allocation")
        return self.rows

    def _curves(self) -> dict[str, list[float]]:
        model, folded, images = self.trained.model, self.trained.folded, self.draw.images
        return {
            group.name: loss_curves(
                model, group, {"": self.ranking.orders[group.name]}, images, True, folded
            )[""]
            for group in self.trained.groups
        }

    def _curves_by_grail(self) -> dict[str, list[float]]:
        model, folded, images = self.trained.model, self.trained.folded, self.draw.images
        assert isinstance(folded, fx.GraphModule)
        orders = self.ranking.orders
        return {
            group.name: grail.loss_curves(
                model, folded, group, orders[group.name], images, self.grams
            )
            for group in self.trained.groups
        }

    def _cut(self, curves: dict[str, list[float]], share: float) -> dict[str, list[int]]:
        losses = {self.ranking.name: curves}
        return self.chooser.choose(self.ranking, losses, "macs", share)

    def _add(
        self,
        cut: dict[str, list[int]],
        share: float,
        repair: str,
        network: nn.Module,
        **more: float,
    ) -> None:
        """A row for a network of the whole one's shape, or one that is cut already."""
        kept = [g.n_units - len(cut[g.name]) for g in self.trained.groups]
        row = {
            "network": self.trained.name,
            "draw": self.draw.number,
            "criterion": self.name,
            "share": share,
            "repair": repair,
        }
        self.rows.append(row | more | {"kept": kept} | self.judge.measure(network))

    def _small(self, network: nn.Module, cut: dict[str, list[int]]) -> nn.Module:
        return prune_model(network, self.draw.images[:1], cut).eval()

    def _least_squares(self, cut: dict[str, list[int]], share: float, seconds: float) -> None:
        model, groups, images = self.trained.model, self.trained.groups, self.draw.images
        start = time.process_time()
        repaired = least_squares(model, model, groups, cut, images).network
        self._add(
            cut,
            share,
            "least_squares",
            self._small(repaired, cut),
            seconds_choosing=seconds,
            seconds=time.process_time() - start,
        )

    def _not_repaired(self, cut: dict[str, list[int]], share: float) -> None:
        bare = self._small(self.trained.model, cut)
        self._add(cut, share, "none", bare, seconds=0.0)
        start = time.process_time()
        batchnorm(bare, self.draw.images)
        self._add(cut, share, "batchnorm", bare, seconds=time.process_time() - start)

    def _grail(self, cut: dict[str, list[int]], share: float, name: str) -> None:
        model, groups, images = self.trained.model, self.trained.groups, self.draw.images
        reference = _outputs(model, images)

        def network(ridge: float) -> nn.Module:
            return self._small(grail.compensated(model, groups, cut, self.grams, ridge), cut)

        def misses(ridge: float) -> float:
            return grail.divergence(_outputs(network(ridge), images), reference)

        start = time.process_time()
        fixed = network(grail.RIDGE)
        seconds = time.process_time() - start
        self._add(cut, share, name, fixed, ridge=grail.RIDGE, seconds=seconds)
        best = min(grail.RIDGES, key=misses)
        chosen = network(best)
        self._add(cut, share, f"{name}, chosen ridge", chosen, ridge=best, seconds=seconds)
        batchnorm(chosen, images)
        self._add(cut, share, f"{name}, batchnorm", chosen, ridge=best, seconds=seconds)


def run(
    trained: Trained, draw: Draw, name: str, judge: Judge, shares: Sequence[float], path: Path
) -> None:
    """One ranking on one draw; the rows of shares that are not there yet are saved."""
    here = {"network": trained.name, "draw": draw.number, "criterion": name}
    missing = [share for share in shares if not _is_there(path, share=share, **here)]
    if missing:
        start = time.monotonic()
        rows = RankingBenchmark(trained, draw, name, judge).run(missing)
        merge(path, rows, KEYS)
        seconds = time.monotonic() - start
        print(f"{trained.name}, draw {draw.number}: {name}: {seconds:.0f} s", flush=True)


def run_network(name: str, options: argparse.Namespace) -> None:
    """All draws' most telling rankings first, then the others of all draws."""
    trained = load_trained(name)
    judge = Judge(trained.model, *evaluation())
    if not _is_there(PATH, network=name, repair="whole"):
        row = {"network": name, "draw": -1, "criterion": "whole", "share": 1.0, "repair": "whole"}
        merge(PATH, [row | judge.measure(trained.model)], KEYS)
    for names in (FIRST, OTHERS):
        for number in options.draws:
            draw = load_draw(name, number)
            for criterion in names:
                if criterion in options.criteria:
                    run(trained, draw, criterion, judge, options.shares, PATH)


def _is_there(path: Path, **found: object) -> bool:
    return any(all(row[key] == value for key, value in found.items()) for row in read(path))


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([network(part.clone()) for part in images.split(IMAGES_AT_ONCE)])


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
