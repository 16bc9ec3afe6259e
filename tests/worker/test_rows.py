"""Estimates as the rows of a shard: how each value came about."""

import torch

from shapray.config import Score
from shapray.shapley.estimators import estimate
from shapray.shapley.game import FunctionGame
from shapray.worker.rows import shard_table


class Known(FunctionGame):
    """A game whose outputs estimators may know."""

    def surrogate(self):
        return self.value, lambda images, outputs: outputs


def rows(kind, n_players, **score):
    game = kind(lambda kept: kept.double().sum(1) ** 2, n_players)
    return shard_table(
        "g", ["image"], None, estimate(game, Score(**{"permutations": 8} | score), [1])
    ).to_pylist()


def test_each_row_says_how_it_was_sampled():
    exact = rows(Known, 10)
    pairs = rows(Known, 10, exact_max_players=0)
    few = rows(Known, 4, estimator="permutation")  # too few for pairs
    unknown = rows(FunctionGame, 10, exact_max_players=0)
    found = [(row["estimator"], row["sampling"]) for [row] in (exact, pairs, few, unknown)]
    assert found == [
        ("exact", None),
        ("permutation", "pairs"),
        ("permutation", "permutations"),
        ("permutation", "permutations"),
    ]


def test_a_standard_error_that_is_not_known_is_null():
    [row] = rows(FunctionGame, 4, estimator="permutation", permutations=2)
    assert row["standard_error"] == [None] * 4
    assert torch.tensor(row["shapley_value"]).isfinite().all()
