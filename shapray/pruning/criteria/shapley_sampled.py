"""Shapley values again, as they come out if no image's are enumerated."""

import numpy as np

from shapray.engine.score import score_images
from shapray.pruning.criteria.inputs import AsScored, Inputs


def shapley_sampled(inputs: Inputs) -> dict[str, np.ndarray]:
    """Mean over images of |Shapley value|, by sampling only: what `mean_abs` would be if the job's
    estimator were `permutation`, up to float rounding. Value function, permutations and seed are
    the job's, the precision is float32. It takes one worker as long as all that it is sampled from.

    Beside a job's own `mean_abs` it says what enumerating images with few active units changes.

    Raises:
        ValueError: nothing says how values are computed, or one is not finite.
    """
    asked = check_scoring(inputs)
    return {group.name: _mean_abs(inputs, asked, group.name) for group in inputs.groups}


def check_scoring(inputs: Inputs) -> AsScored:
    """How values are computed; raises ValueError if nothing says so."""
    if inputs.as_scored is None:
        raise ValueError(
            "shapley_sampled is for jobs, whose value function and permutations it takes; here, "
            "score with estimator='permutation' and rank by mean_abs"
        )
    return inputs.as_scored


def _mean_abs(inputs: Inputs, asked: AsScored, group: str) -> np.ndarray:
    split, sums, first = inputs.scorer.split(group, "float32"), 0.0, 0
    price = asked.prices[group]
    for images in inputs.images.split(inputs.batch):
        some = slice(first, first := first + len(images))
        labels = None if inputs.labels is None else inputs.labels[some]
        found = score_images(
            split, images, labels, asked.ids[some], asked.scoring, price, asked.places[some]
        )
        sums += np.abs([estimate.shapley_value for estimate in found]).sum(0)  # (n_units,)
    return np.asarray(sums / len(asked.ids))
