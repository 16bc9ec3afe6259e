"""How sure a cut is: the chance that a unit belongs on the other side of it.

A score is off by its total error, of images and sampling. What the scores could be instead is drawn
many times, the units are ranked anew each time as the job ranks them, and as many of the group go;
how many should is not in doubt here. Other criteria of a ranking are taken as they are. (A flat
prior: the scores' own spread is not used to shrink them.)
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from shapray.config.prune import SHAPLEY, Prune
from shapray.pruning.ranking import own_criteria, together

N_DRAWS = 1000
ERROR = {"mean": "total_error", "mean_abs": "mean_abs_total_error"}


def misplaced(
    scores: pa.Table,
    prune: Prune,
    cost: float | None,
    removed: Sequence[int],
    n_draws: int = N_DRAWS,
    blocks: Sequence[int] = (),
) -> np.ndarray:
    """For each unit of a group: of a removed one the chance that it is worth more than one that
    stays, of a kept one the chance that it is worth less than one that goes.

    The same arguments give the same numbers.

    Args:
        scores: the group's rows of ``scores.parquet``.
        cost: multiply-adds that go with a unit, if its worth is for what it costs.
        removed: the units that the job's own cut removes.
        blocks: of the units, see `Group`; equally many go of each.
    Returns:
        (n_units,) float64; NaN where nothing is known: the ranking is not by Shapley values, an
        error is not known, nothing goes, or the cut is not what the ranking says (several rounds).
    """
    random = np.random.default_rng(len(scores))
    parts, drawn = [], []
    for name in own_criteria(scores, prune):
        part, of_draws = _score(scores, name, random, n_draws)
        parts.append(part)
        drawn.append(of_draws)
    unknown = np.full(len(scores), np.nan)
    is_removed = np.zeros(len(scores), bool)
    is_removed[list(removed)] = True
    exact = all(of_draws is part for part, of_draws in zip(parts, drawn))
    if exact or not removed or not all(np.isfinite(of_draws).all() for of_draws in drawn):
        return unknown
    of_blocks = np.array(blocks if len(blocks) else [0] * len(scores))
    if not np.array_equal(_lowest(together(parts, cost), len(removed), of_blocks), is_removed):
        return unknown
    return (_lowest(together(drawn, cost), len(removed), of_blocks) != is_removed).mean(axis=0)


def all_misplaced(
    scores: pa.Table,
    prune: Prune,
    costs: Mapping[str, float],
    removed: Mapping[str, Sequence[int]],
    blocks: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    """`misplaced` of every group that something was removed from, or could have been."""
    groups = np.array(scores["group"].to_pylist(), dtype=object)
    return {
        group: misplaced(
            scores.filter(pa.array(groups == group)),
            prune,
            costs[group] if prune.per_multiply_add else None,
            removed.get(group, ()),
            blocks=blocks.get(group, ()),
        )
        for group in dict.fromkeys(groups.tolist())
    }


def _score(
    scores: pa.Table, name: str, random: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """A criterion's (n_units,) and, if it is by Shapley values, (n_draws, n_units) of it."""
    formula = SHAPLEY.fullmatch(name)
    if formula is None:
        part = np.zeros(len(scores)) if name == "random" else _column(scores, name)
        return part, part
    part, error = _column(scores, formula["score"]), _column(scores, ERROR[formula["score"]])
    if formula["spread"]:
        part = part + float(formula["times"]) * _column(scores, formula["spread"])
    return part, part + error * random.standard_normal((n_draws, len(scores)))


def _column(scores: pa.Table, name: str) -> np.ndarray:
    return scores[name].to_numpy(zero_copy_only=False).astype(float)


def _lowest(scores: np.ndarray, n: int, blocks: np.ndarray) -> np.ndarray:
    """(..., n_units) bool: the `n` that go first, equally many of each block; equal ones by the
    units' order."""
    lowest = np.zeros(scores.shape, bool)
    each = np.unique(blocks)
    for block in each:
        own = scores[..., blocks == block]
        places = own.argsort(axis=-1, kind="stable").argsort(axis=-1)
        lowest[..., blocks == block] = places < n / len(each)
    return lowest
