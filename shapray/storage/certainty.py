"""How sure a group's scores are, and which of two things would make them surer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

UNSURE = 0.05  # of a unit: from this chance to belong on the other side of the cut
DOMINATES = 2.0  # times the other error: then only this one is worth money


@dataclass(frozen=True)
class Certainty:
    """Errors of a group's scores (`mean`), root mean square over its units, relative to the spread
    of the scores: their standard deviation over the units, without what the errors add to it.

    Infinite where the spread is not to be seen beside an error, NaN where an error is not known.

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
            return Certainty(*(one * math.inf if one else 0.0 for one in (total, images, sampling)))
        return Certainty(*(math.sqrt(one / spread) for one in (total, images, sampling)))


def median(of: Sequence[Certainty]) -> Certainty:
    """That of the group in the middle by the total error; groups where it is not known take no
    part."""
    known = sorted((one for one in of if not math.isnan(one.total)), key=lambda one: one.total)
    return known[(len(known) - 1) // 2] if known else Certainty(math.nan, math.nan, math.nan)


def in_words(found: Certainty, n_images: int) -> str:
    """A sentence about what would make scores surer."""
    if math.isnan(found.total):
        return "one image tells nothing of the choice of the images"
    if math.isnan(found.sampling):
        return "how much of it is the sampling's is not known: more than 2 permutations would tell"
    squares = found.images**2, found.sampling**2
    if math.isinf(found.total):
        return "the scores do not differ by more than their errors; more images would tell"
    if squares[0] >= DOMINATES**2 * squares[1]:
        return (
            f"nearly all of it is the choice of these {n_images:,} images: more images lower it, "
            "more permutations would hardly"
        )
    if squares[1] >= DOMINATES**2 * squares[0]:
        return "most of it is the sampling's: more permutations lower it"
    return "both more images and more permutations lower it"


def percent(error: float) -> str:
    """An error relative to a spread, for a table."""
    if math.isnan(error):
        return "not known"
    return "not seen" if math.isinf(error) else f"{error:.1%}"
