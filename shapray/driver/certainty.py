"""How sure a group's scores are, and which of two things would make them surer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

DOMINATES = 2.0  # times the other error: then only this one is worth money


@dataclass(frozen=True)
class Certainty:
    """Errors of a group's scores (`mean`), root mean square over its units, relative to the spread
    of the scores: their standard deviation over the units, without what the errors add to it.

    Infinite where the spread is not to be seen beside the errors, NaN where an error is not known.

    Attributes:
        total: against the mean over all images that the calibration images were drawn from.
        images: what of it the choice of the images makes.
        sampling: what the sampling makes.
    """

    total: float
    images: float
    sampling: float

    @staticmethod
    def of(scores: pa.Table) -> "Certainty":
        """scores: a group's rows of ``scores.parquet``."""
        means = scores["mean"].to_numpy()
        total, images, sampling = (
            np.square(scores[name].to_numpy(zero_copy_only=False).astype(float)).mean()
            for name in ("total_error", "image_error", "standard_error")
        )
        return Certainty.of_squares(means.var() - total, total, images, sampling)

    @staticmethod
    def of_squares(spread: float, total: float, images: float, sampling: float) -> "Certainty":
        """From squares of errors, and of the spread."""
        if spread <= 0:
            known = [math.nan if math.isnan(one) else math.inf for one in (total, images, sampling)]
            return Certainty(*known)
        return Certainty(*(math.sqrt(one / spread) for one in (total, images, sampling)))


def median(of: Sequence[Certainty]) -> Certainty:
    """Of all groups, each error by itself; a group where it is not known takes no part."""
    columns = ([getattr(one, name) for one in of] for name in ("total", "images", "sampling"))
    known = ([value for value in column if not math.isnan(value)] for column in columns)
    return Certainty(*(float(np.median(column)) if column else math.nan for column in known))


def in_words(found: Certainty, n_images: int) -> str:
    """A sentence about what would make scores surer."""
    if math.isnan(found.total):
        return "one image tells nothing of the choice of the images"
    if math.isnan(found.sampling):
        return "how much of it is the sampling's is not known: score.permutations: 4 would tell"
    squares = found.images**2, found.sampling**2
    if math.isinf(found.total) or squares[0] >= DOMINATES**2 * squares[1]:
        return (
            f"nearly all of it is the choice of these {n_images:,} images: more images lower it "
            "(data.calibration.limit), more permutations would not"
        )
    if squares[1] >= DOMINATES**2 * squares[0]:
        return "most of it is the sampling's: more permutations lower it (score.permutations)"
    return (
        "more images (data.calibration.limit) and more permutations (score.permutations) lower it"
    )


def percent(error: float) -> str:
    """An error relative to a spread, for a table."""
    if math.isnan(error):
        return "not known"
    return "> 100%" if error > 1 else f"{error:.1%}"
