"""Marginal contributions at both ends of a game."""

import brute_force
import numpy as np
import pytest
import torch

from shapray.explain.additivity import additivity, additivity_rows
from shapray.shapley.game import FunctionGame, NonFiniteValue


def as_game(toy: brute_force.Toy, n_players: int, n_images: int = 1) -> FunctionGame:
    return FunctionGame(lambda kept: torch.from_numpy(toy(kept.numpy())), n_players, n_images)


def test_an_additive_game_is_explained_at_both_ends():
    toy, weights = brute_force.additive(np.array([3.0, -1.0, 0.5]))
    found = additivity(as_game(toy, 3, 2))
    np.testing.assert_allclose(found.alone, np.tile(weights, (2, 1)))
    np.testing.assert_allclose(found.last, np.tile(weights, (2, 1)))
    (row,) = additivity_rows("g", found).to_pylist()
    assert row == {
        "group": "g",
        "n_images": 2,
        "value_all": 2.5,
        "value_none": 0.0,
        "alone": pytest.approx(2.5),
        "last": pytest.approx(2.5),
        "alone_error": pytest.approx(0.0),
        "last_error": pytest.approx(0.0),
    }


def test_those_who_stand_in_for_each_other_and_those_who_need_each_other():
    any_of = additivity(as_game(lambda kept: 1 + kept.any(1).astype(float), 4))
    assert (any_of.alone.tolist(), any_of.last.tolist()) == ([[1.0] * 4], [[0.0] * 4])
    all_of = additivity(as_game(lambda kept: 1 + kept.all(1).astype(float), 4))
    assert (all_of.alone.tolist(), all_of.last.tolist()) == ([[0.0] * 4], [[1.0] * 4])
    assert (all_of.value_none[0], all_of.value_all[0]) == (1.0, 2.0)


def test_null_players_add_nothing_and_images_differ():
    toy, _ = brute_force.random_game(6, seed=1)
    game = as_game(toy, 6, 3)
    game.active[1, [0, 4]] = False
    game.active[2] = False
    found = additivity(game)
    assert (found.alone[1, [0, 4]] == 0).all()
    assert (found.last[1, [0, 4]] == 0).all()
    np.testing.assert_array_equal(found.alone[1, [1, 2, 3, 5]], found.alone[0, [1, 2, 3, 5]])
    assert not found.alone[2].any()
    assert found.n_evaluations.tolist() == [14, 10, 2]
    row = additivity_rows("g", found).to_pylist()[0]
    assert row["alone"] == pytest.approx(found.alone.sum(1).mean())
    assert row["last_error"] == pytest.approx(found.last.sum(1).std(ddof=1) / 3**0.5)


def test_a_single_image_has_no_error():
    toy, _ = brute_force.random_game(3, seed=1)
    row = additivity_rows("g", additivity(as_game(toy, 3))).to_pylist()[0]
    assert row["alone_error"] is row["last_error"] is None


def test_a_value_that_is_no_number_names_image_and_coalition():
    game = as_game(lambda kept: np.where(kept.sum(1) == 3, np.nan, 1.0), 4, 2)
    game.active[0] = False
    with pytest.raises(NonFiniteValue, match="nan") as caught:
        additivity(game)
    assert (caught.value.image, caught.value.coalition) == (1, [1, 2, 3])
