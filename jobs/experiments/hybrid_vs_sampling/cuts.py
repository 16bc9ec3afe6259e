"""What the cuts by each method are worth: a row per network, seed, method, setting and repair.

All cuts of a size take as many units from every group (allocation `uniform`), so that they are
networks of the same shape and differ by nothing but which units went: a `global` rank would compare
scores of different layers, and cut networks of unequal shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from jobs.experiments.hybrid_vs_sampling.networks import Trained
from jobs.experiments.hybrid_vs_sampling.values import GroupOnImages, Values
from shapray.config import Prune
from shapray.pruning.chooser import Chooser
from shapray.pruning.compressed import compressed
from shapray.pruning.criteria.at_random import draw
from shapray.pruning.evaluate import joined, tally
from shapray.pruning.ranking import Ranking, Scores

IMAGES_AT_ONCE = 250  # of an evaluation
REPAIRED_RANKING = "mean_abs"  # the package's own; a repair takes longer than all else here
REPAIRS: dict[str, tuple[str, ...]] = {"none": (), "least_squares": ("least_squares",)}
RANKINGS = ("mean_abs", "mean")
Row = dict[str, Any]


class Cutter:
    """Cuts a network by scores and measures what is left; a cut that was measured is not again.

    Args:
        pixels: (n_images, channels, height, width) float32, the calibration images of a seed.
        subsets: number of images -> the rows of `pixels` that are taken.
    """

    def __init__(self, trained: Trained, pixels: Tensor, subsets: Mapping[int, np.ndarray]) -> None:
        self.trained, self.pixels, self.subsets = trained, pixels, subsets
        self._known: dict[tuple[object, ...], Row] = {}

    def rows(self, scores: Scores, n_images: int, ranking: str | None) -> Iterator[Row]:
        """A row for each size and repair that is asked for."""
        first = self.trained.plan.shares[0]
        for share in self.trained.plan.shares:
            prune = Prune(macs=share, allocation="uniform")
            chooser = Chooser(prune, self.trained.n_units, self.trained.sizes)
            removed = chooser.choose(Ranking("scores", None, scores), {}, "macs", share)
            for name, repair in REPAIRS.items():
                if repair and (share != first or ranking not in (REPAIRED_RANKING, None)):
                    continue
                cut = tuple((group, *units) for group, units in removed.items())
                key = (share, cut, name, n_images if repair else None)
                if key not in self._known:
                    self._known[key] = self._measured(removed, repair, n_images, prune)
                yield {"share": share, "repair": name, "ranking": ranking, **self._known[key]}

    def _measured(
        self,
        removed: Mapping[str, Sequence[int]],
        repair: Sequence[str],
        n_images: int,
        prune: Prune,
    ) -> Row:
        trained, images = self.trained, self.pixels[self.subsets[n_images]]
        small = compressed(
            trained.model,
            trained.groups,
            removed,
            repair,
            images,
            labels=None,
            prune=prune,
            seed=0,
            n_fitted=n_images,  # one view of each: how few there are is part of the question
        )
        parts = zip(trained.pixels.split(IMAGES_AT_ONCE), trained.labels.split(IMAGES_AT_ONCE))
        found = joined(tally(small.network, *part) for part in parts)
        macs = trained.sizes.macs({group: len(units) for group, units in removed.items()})
        return {"top1": found.top1, "loss": found.loss, "macs": macs}


def seed_rows(trained: Trained, seed: int) -> list[Row]:
    """All rows of one seed, which draws the images and whatever is sampled."""
    plan = trained.plan
    images = trained.calibration(max(plan.n_images), seed)
    pixels = images.load(0, len(images))
    place = {name: row for row, name in enumerate(images.ids)}
    subsets = {
        n: np.array([place[name] for name in trained.calibration(n, seed).ids])
        for n in plan.n_images
    }
    cutter, rows = Cutter(trained, pixels, subsets), list[Row]()
    own = {"network": trained.name, "seed": seed}
    at_random = {group: draw(seed, group, n) for group, n in trained.n_units.items()}
    for n_images in plan.n_images:
        said = own | {"method": "random", "n_images": n_images}
        rows += [said | row for row in cutter.rows(at_random, n_images, None)]
    prepared = {
        group.name: GroupOnImages(trained.folded, group, images, pixels, plan.exact_max_players)
        for group in trained.groups
    }
    for sampler in plan.samplers:
        for permutations in plan.permutations:
            if sampler == "package" and permutations == 2:
                continue  # a single pair: it draws plain permutations, too
            found = {
                name: group.by_method(sampler, permutations, seed, list(subsets.values()))
                for name, group in prepared.items()
            }
            said = own | {"sampler": sampler, "permutations": permutations}
            rows += [said | row for row in _method_rows(cutter, found, plan.n_images)]
    return rows


def _method_rows(
    cutter: Cutter, found: Mapping[str, Mapping[str, Sequence[Values]]], n_images: Sequence[int]
) -> Iterator[Row]:
    """found: group -> method -> values for each number of images."""
    for method in next(iter(found.values())):
        for place, n in enumerate(n_images):
            values = {group: of_group[method][place] for group, of_group in found.items()}
            said = {
                "method": method,
                "n_images": n,
                "evaluations": sum(int(v.evaluations.sum()) for v in values.values()),
                "exact_share": float(np.mean([v.exact.mean() for v in values.values()])),
            }
            for ranking in RANKINGS:
                scores = {group: score_of(v.phi, ranking) for group, v in values.items()}
                yield from (said | row for row in cutter.rows(scores, n, ranking))


def score_of(phi: np.ndarray, ranking: str) -> np.ndarray:
    """(n_images, n_units) -> (n_units,)"""
    return np.asarray((np.abs(phi) if ranking == "mean_abs" else phi).mean(0))
