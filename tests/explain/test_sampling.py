"""Sampled values beside exact ones, and the cuts that both make."""

import brute_force
import numpy as np
import pytest
import torch

from shapray.explain.sampling import (
    EnumeratedGame,
    Sampled,
    flip_rows,
    most_players,
    sampled_and_exact,
    sampling_rows,
    squared_errors,
    units_cut,
)
from shapray.shapley.coalitions import image_seed
from shapray.shapley.estimators import Settings, estimate
from shapray.shapley.game import FunctionGame, NonFiniteValue


def as_game(toy: brute_force.Toy, n_players: int, n_images: int = 1) -> FunctionGame:
    return FunctionGame(lambda kept: torch.from_numpy(toy(kept.numpy())), n_players, n_images)


def seeds(n: int) -> list[int]:
    return [image_seed(7, "toy", str(image)) for image in range(n)]


def test_exact_values_are_those_of_brute_force_and_null_players_get_nothing():
    toy, known = brute_force.random_game(8, seed=1)
    values = toy(brute_force.subsets(8))
    game = as_game(toy, 8, 3)
    game.active[1, [2, 6]] = False
    game.active[2] = False
    found = sampled_and_exact(game, seeds(3), n_seeds=2, prices=(2,))
    np.testing.assert_allclose(found.exact[0], known, atol=1e-12)
    bits = [j for j in range(8) if j not in (2, 6)]
    without = np.array([sum(1 << bits[j] for j in range(6) if i >> j & 1) for i in range(64)])
    np.testing.assert_allclose(found.exact[1, bits], brute_force.shapley(values[without]))
    assert (found.exact[1, [2, 6]] == 0).all()
    assert (found.drawn[1][..., [2, 6]] == 0).all()
    assert not found.exact[2].any()
    assert found.n_active.tolist() == [8, 6, 0]
    assert found.n_evaluations.tolist() == [256, 64, 1]


def test_draws_are_what_the_estimator_gives_and_ask_the_game_once():
    n = 9
    toy, _ = brute_force.random_game(n, seed=2)
    game = as_game(toy, n)
    asked = []
    outputs = game.outputs
    game.outputs = lambda images, kept: asked.append(len(kept)) or outputs(images, kept)
    alone = EnumeratedGame(game, 0, n_copies=3)
    assert sum(asked) == 2**n
    here, there = (
        estimate(one, Settings("permutation", 4), seeds(3)) for one in (alone, as_game(toy, n, 3))
    )
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(ours.shapley_value, theirs.shapley_value)
        np.testing.assert_array_equal(ours.standard_error, theirs.standard_error)
    assert sum(asked) == 2**n


def test_draws_are_unbiased_and_their_error_falls_with_the_price():
    n, n_seeds = 7, 600
    toy, known = brute_force.random_game(n, seed=3)
    found = sampled_and_exact(as_game(toy, n), seeds(1), n_seeds, prices=(2, 4, 8))
    drawn = found.drawn[0]  # (n_prices, n_seeds, n_units)
    off = 4 * drawn.std(1) / n_seeds**0.5
    assert (np.abs(drawn.mean(1) - known) < off).all()
    errors = squared_errors(found)[0]
    # half of it for twice as many
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.3)
    expected = ((drawn - known) ** 2).sum(2).mean(1) / (known**2).sum()
    np.testing.assert_allclose(errors, expected)


def test_an_additive_game_has_no_error():
    toy, _ = brute_force.additive(np.arange(6.0))
    found = sampled_and_exact(as_game(toy, 6, 2), seeds(2), n_seeds=3)
    np.testing.assert_allclose(squared_errors(found), 0, atol=1e-20)
    rows = flip_rows("g", found, n_cut=3, rank_by="mean")
    assert rows["another_cut"].to_pylist() == [0.0] * 4


def test_cuts_are_of_the_smallest_scores_and_of_the_lower_number_among_equals():
    values = np.array([[3.0, -1.0, 0.0, 0.5], [-1.0, -1.0, 0.0, 0.5]])  # means 1, -1, 0, 0.5
    assert units_cut(values, 2, "mean").tolist() == [False, True, True, False]
    assert units_cut(values, 2, "mean_abs").tolist() == [False, False, True, True]
    assert units_cut(np.zeros((1, 3)), 1, "mean").tolist() == [True, False, False]


def test_rows_tell_how_often_and_how_far_cuts_differ():
    exact = np.array([[1.0, 2.0, 3.0, 4.0]])
    drawn = np.array([[[1, 2, 3, 4], [3, 2, 1, 4], [4, 3, 2, 1], [2, 1, 3, 4.0]]])[None]
    found = Sampled(np.array([4]), exact, drawn, np.array([16]))
    (row,) = flip_rows("g", found, n_cut=2, rank_by="mean", prices=(8,)).to_pylist()
    assert row == {
        "group": "g",
        "permutations": 8,
        "n_images": 1,
        "n_cut": 2,
        "another_cut": 0.5,
        "n_other": 0.75,
        "n_seeds": 4,
    }
    (row,) = sampling_rows("g", ["a"], found, prices=(8,)).to_pylist()
    assert row["error"] == pytest.approx((0 + 8 + 20 + 2) / 4 / 30)
    assert (row["image_id"], row["n_active"], row["n_seeds"]) == ("a", 4, 4)


def test_an_image_worth_nothing_has_no_relative_error():
    found = sampled_and_exact(as_game(lambda kept: np.ones(len(kept)), 3), seeds(1), n_seeds=2)
    assert sampling_rows("g", ["a"], found)["error"].to_pylist() == [None] * 4


def test_there_is_room_for_the_outputs():
    assert most_players(1000) < most_players(10) <= 24
    assert 4 * 1000 * 2 ** most_players(1000) <= 2**26


def test_a_value_that_is_no_number_names_image_and_coalition():
    game = as_game(lambda kept: np.where(kept[:, 1] & kept[:, 3], np.nan, 1.0), 4, 2)
    game.active[:, 0] = False
    game.active[0] = False
    with pytest.raises(NonFiniteValue, match="nan") as caught:
        sampled_and_exact(game, seeds(2))
    assert (caught.value.image, caught.value.coalition) == (1, [1, 3])
