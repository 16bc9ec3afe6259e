from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shapray.config import Prune
from shapray.pruning.doubt import misplaced


def table(mean_abs: Any, error: Any, **others: Any) -> pa.Table:
    mean_abs = np.asarray(mean_abs, float)
    error = np.broadcast_to(error, mean_abs.shape)
    columns = {"mean": mean_abs, "mean_abs": mean_abs, "std": mean_abs}
    errors = {"total_error": error, "mean_abs_total_error": error}
    return pa.table({"group": ["g"] * len(mean_abs)} | columns | errors | others)


def test_two_units_are_swapped_as_often_as_their_difference_has_the_other_sign() -> None:
    for gap in (0.0, 1.0, 3.0):
        found = misplaced(table([1.0, 1.0 + gap], 1.0), Prune(rank_by="mean_abs"), 1.0, [0], 4000)
        chance = NormalDist().cdf(-gap / np.sqrt(2))
        sigma = np.sqrt(chance * (1 - chance) / 4000)
        assert found == pytest.approx([chance, chance], abs=4 * sigma + 1e-9)


def test_units_far_from_the_cut_are_sure() -> None:
    found = misplaced(table([0, 1, 2, 3, 4, 5], 0.3), Prune(rank_by="mean"), 1.0, [0, 1, 2])
    assert found.argmax() in (2, 3)
    assert (found[[0, 1, 4, 5]] < 0.01).all()


def test_what_is_known_of_other_criteria_counts() -> None:
    """A unit that comes last by the other criterion does not go, however unsure its score is."""
    scores = table([0, 1, 2, 3], 1.0, obs=[0.0, 1.0, 2.0, 3.0])
    alone = misplaced(scores, Prune(rank_by="mean_abs"), 1.0, [0])
    both = misplaced(scores, Prune(macs=0.5), 1.0, [0])
    assert both[3] < alone[3]


@pytest.mark.parametrize("rank_by", ["l1_norm", "random"])
def test_a_ranking_by_something_else_says_nothing(rank_by: str) -> None:
    scores = table([0, 1, 2], 1.0, l1_norm=[0.0, 1.0, 2.0])
    assert np.isnan(misplaced(scores, Prune(rank_by=rank_by), 1.0, [0])).all()


def test_a_cut_of_several_rounds_is_not_judged_by_the_first_scores() -> None:
    assert np.isnan(misplaced(table([0, 1, 2], 0.1), Prune(rank_by="mean"), 1.0, [2])).all()


def test_an_error_that_is_not_known_leaves_the_chance_unknown() -> None:
    assert np.isnan(misplaced(table([0, 1, 2], np.nan), Prune(rank_by="mean"), 1.0, [0])).all()


def test_the_same_scores_give_the_same_chances() -> None:
    scores = table(np.arange(8), 1.0)
    first, second = (misplaced(scores, Prune(rank_by="mean"), 1.0, [0, 1]) for _ in range(2))
    assert np.array_equal(first, second)


def test_equally_many_of_each_block_go() -> None:
    """The lowest of each block, though two of the other block are lower than it."""
    scores, prune = table([0, 1, 2, 10, 11, 12], 0.3), Prune(rank_by="mean")
    blocks = [0, 0, 0, 1, 1, 1]
    found = misplaced(scores, prune, 1.0, [0, 3], blocks=blocks)
    assert found[[0, 1, 3, 4]] == pytest.approx(NormalDist().cdf(-1 / np.sqrt(2 * 0.09)), abs=0.01)
    assert np.isnan(misplaced(scores, prune, 1.0, [0, 1], blocks=blocks)).all()
