"""The claim behind the thesis: how often a wanted unit is cut by bad luck, and by whose.

On images that can be enumerated, in sets with a similar number of active units: the half of the
units that the exact scores of N images keep, and

- *sampling*: the share of the units cut by the sampled scores of the same N images that are not
  among those cut by the exact ones,
- *images*: the same of the exact scores of N other images,
- *both*: the same of the sampled scores of N other images.

What that costs is the score that goes with the units cut in excess of the least that half of the
units can have, over the sum of all units' scores; a score there is the mean over all images of the
set, as near to the truth as there are images. Units that no image of the set wakes are left out:
everybody cuts them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jobs.experiments.hybrid_vs_sampling.cuts import RANKINGS, Row, score_of
from jobs.experiments.hybrid_vs_sampling.networks import Trained
from jobs.experiments.hybrid_vs_sampling.values import GroupOnImages
from shapray.network.group import Group
from shapray.shapley.pairs import in_pairs

BINS = ((1, 6), (7, 9), (10, 12), (13, 14), (15, 16))  # of active units
PERMUTATIONS = (2, 8, 32)
SAMPLERS = ("plain", "package")
N_IMAGES = (10, 50, 250)
N_SEEDS = 10
MOST_IMAGES = 500  # of a set: two draws of 250
EXACT_AT_MOST = {"digits": 16, "digits_vgg": 12, "resnet20": 14}
GROUPS = {"resnet20": {"layer1.2.conv1": 24}}
"""Of a network whose images take long: the groups that are looked at, and images of each set."""


def group_rows(trained: Trained, group: Group) -> list[Row]:
    """A row per set of images, seed, number of images, sampler, price and ranking."""
    limits = GROUPS.get(trained.name)
    if limits is not None and group.name not in limits:
        return []
    images = trained.calibration(None, 0)
    pixels = images.load(0, len(images))
    most = EXACT_AT_MOST[trained.name]
    estimator = GroupOnImages(trained.folded, group, images, pixels, most)
    n_active = estimator.n_active
    rows: list[Row] = []
    for low, high in BINS:
        members = np.flatnonzero((n_active >= low) & (n_active <= min(high, most)))
        order = np.random.default_rng(0).permutation(members)
        members = order[: MOST_IMAGES if limits is None else limits[group.name]]
        if len(members) < 2 * min(N_IMAGES):
            continue
        said = {
            "network": trained.name,
            "group": group.name,
            "least_active": int(n_active[members].min()),
            "most_active": int(n_active[members].max()),
        }
        found = _set_rows(estimator, members)
        rows += [said | row for row in found]
    return rows


def _set_rows(estimator: GroupOnImages, members: np.ndarray) -> Iterator[Row]:
    """Rows of one set of images that all can be enumerated."""
    exact = estimator.enumerated(members).phi
    awake = np.flatnonzero((exact != 0).any(0))
    exact = exact[:, awake]
    if len(awake) < 2:
        return
    most_active = int(estimator.n_active[members].max())
    n_images = [n for n in N_IMAGES if 2 * n <= len(members)]
    for seed in range(N_SEEDS):
        order = np.random.default_rng(seed + 1).permutation(len(members))
        drawn = order[: max(n_images)]
        for sampler in SAMPLERS:
            for permutations in PERMUTATIONS:
                if sampler == "package" and not in_pairs(most_active, permutations):
                    continue  # it draws plain permutations, too
                found = estimator.sampled(sampler, permutations, seed, members[drawn])
                sampled = found.phi[:, awake]
                said = {"seed": seed, "sampler": sampler, "permutations": permutations}
                for n in n_images:
                    other = exact[order[-n:]]
                    for ranking in RANKINGS:
                        yield said | _compared(exact, exact[drawn[:n]], sampled[:n], other, ranking)


def _compared(
    truth: np.ndarray, exact: np.ndarray, sampled: np.ndarray, other: np.ndarray, ranking: str
) -> Row:
    """Values of the whole set, and of a draw of images, exact and sampled, and of another draw."""
    scores = [score_of(phi, ranking) for phi in (exact, sampled, other)]
    by_exact, by_sampling, by_others = map(lower_half, scores)
    true = score_of(truth, ranking)

    def excess(cut: Sequence[int]) -> float:
        return float((true[list(cut)].sum() - true[lower_half(true)].sum()) / np.abs(true).sum())

    n = len(by_exact)
    return {
        "ranking": ranking,
        "n_images": len(exact),
        "n_units": len(true),
        "wrong_by_sampling": len(set(by_sampling) - set(by_exact)) / n,
        "wrong_by_images": len(set(by_others) - set(by_exact)) / n,
        "wrong_by_both": len(set(by_sampling) - set(by_others)) / n,
        "excess_exact": excess(by_exact),
        "excess_sampled": excess(by_sampling),
    }


def lower_half(scores: np.ndarray) -> list[int]:
    """The half of the units that goes."""
    return np.argsort(scores, kind="stable")[: len(scores) // 2].tolist()
