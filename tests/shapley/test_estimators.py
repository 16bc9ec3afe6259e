"""Shapley values of games with known answers: exact, sampled, and which of the two."""

from collections import Counter

import brute_force
import numpy as np
import pytest
import torch
from torch import Tensor

from shapray.config import Score
from shapray.shapley.coalitions import image_seed
from shapray.shapley.estimators import (
    estimate,
    exact_values,
    is_exact,
    n_sampled,
)
from shapray.shapley.game import FunctionGame, NonFiniteValue

EXACT = Score(estimator="exact")


def as_game(toy: brute_force.Toy, n_players: int, n_images: int = 1) -> FunctionGame:
    return FunctionGame(lambda kept: torch.from_numpy(toy(kept.numpy())), n_players, n_images)


def permutations(n: int, **settings) -> Score:
    return Score(estimator="permutation", permutations=n, **settings)


def seeds(n: int) -> list[int]:
    return [image_seed(0, "toy", str(image)) for image in range(n)]


class Counting(FunctionGame):
    """Remembers how often it was asked for each coalition of each image."""

    def __init__(self, toy: brute_force.Toy, active: Tensor) -> None:
        super().__init__(
            lambda kept: torch.from_numpy(toy(kept.numpy())), active.shape[1], len(active)
        )
        self.active = active
        self.asked: Counter[tuple[int, bytes]] = Counter()

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        for image, kept in zip(images.tolist(), coalitions.numpy(), strict=True):
            self.asked[image, kept.tobytes()] += 1
        return super().outputs(images, coalitions)

    def n_asked(self, image: int) -> int:
        return sum(n for (of, _), n in self.asked.items() if of == image)


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", brute_force.TOYS)
def test_exact_values_are_those_of_brute_force_and_of_the_closed_form(name):
    toy, known = brute_force.TOYS[name]
    n = len(known)
    by_definition = brute_force.shapley(toy(brute_force.subsets(n)))
    (found,) = estimate(as_game(toy, n), EXACT, [0])
    np.testing.assert_allclose(found.shapley_value, by_definition, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.shapley_value, known, rtol=0, atol=1e-9)
    assert found.estimator == "exact"
    assert (found.standard_error == 0).all()
    assert (found.n_evaluations, found.n_permutations) == (2**n, 0)


@pytest.mark.parametrize("n_players", [0, 1, 2, 11])
def test_exact_values_of_a_table(n_players):
    table = np.random.default_rng(n_players).normal(size=2**n_players)
    found = exact_values(torch.from_numpy(table))
    np.testing.assert_allclose(found.numpy(), brute_force.shapley(table), rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", [EXACT, permutations(2), permutations(16), Score(permutations=8)])
@pytest.mark.parametrize("name", brute_force.TOYS)
def test_efficiency(name, score):
    toy, known = brute_force.TOYS[name]
    n = len(known)
    everybody, nobody = toy(np.ones((1, n), bool))[0], toy(np.zeros((1, n), bool))[0]
    for found in estimate(as_game(toy, n, 3), score, seeds(3)):
        assert (found.value_all, found.value_none) == (everybody, nobody)
        assert found.shapley_value.sum() == pytest.approx(everybody - nobody, abs=1e-9)


@pytest.mark.parametrize(
    "score",
    [EXACT, permutations(4), Score(permutations=8), Score(permutations=8, exact_max_players=0)],
)
def test_images_without_active_players(score):
    """Their own values are all 0, and those of the images beside them are what they were."""
    toy, known = brute_force.glove(2)
    game = as_game(toy, 3, 3)
    game.active = torch.tensor([[True] * 3, [False] * 3, [True] * 3])
    found = estimate(game, score, seeds(3))
    assert (found[1].shapley_value == 0).all()
    assert (found[1].standard_error == 0).all()
    assert not found[1].active.any()
    for i in (0, 2):
        (alone,) = estimate(as_game(toy, 3), score, seeds(3)[i : i + 1])
        np.testing.assert_array_equal(found[i].shapley_value, alone.shapley_value)
    assert known.sum() == pytest.approx(found[0].shapley_value.sum())


@pytest.mark.parametrize(
    "score", [EXACT, permutations(4), Score(permutations=8, exact_max_players=0)]
)
def test_no_players_at_all(score):
    (found,) = estimate(as_game(lambda kept: np.full(len(kept), 2.5), 0), score, [0])
    assert found.shapley_value.shape == found.standard_error.shape == (0,)
    assert (found.value_all, found.value_none) == (2.5, 2.5)


@pytest.mark.parametrize("score", [EXACT, permutations(4), Score(permutations=8)])
def test_one_player(score):
    toy, _ = brute_force.TOYS["one player"]
    (found,) = estimate(as_game(toy, 1), score, [0])
    assert found.shapley_value.tolist() == [3.0]
    assert found.standard_error.tolist() == [0.0]
    assert found.n_evaluations == 2


def test_exact_beyond_reach_says_what_it_would_take():
    game = as_game(lambda kept: kept.sum(1).astype(float), 30)
    with pytest.raises(ValueError, match=r"30 active units take 2\^30 = 1,073,741,824.*at most 24"):
        estimate(game, EXACT, [0])


def test_exact_counts_active_players_only():
    toy, known = brute_force.additive(np.arange(40.0))
    game = as_game(toy, 40)
    game.active = (torch.arange(40) % 5 == 0)[None]
    (found,) = estimate(game, EXACT, [0])
    assert found.n_evaluations == 2**8
    np.testing.assert_allclose(found.shapley_value, np.where(known % 5, 0, known), atol=1e-9)


# --- which way ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_active", "n_permutations", "exact_max_players", "exact"),
    [
        (12, 2, 12, True),
        (13, 2, 12, False),
        (0, 2, 0, True),
        (1, 2, 0, True),
        (2, 2, 0, True),  # 4 coalitions; a pair of permutations meets 4
        (3, 2, 0, False),  # 8 against 6
        (3, 4, 0, True),  # 8 against 10
        (7, 20, 0, False),  # 128 against 122
        (7, 22, 0, True),  # 128 against 134
        (24, 8, 24, True),
        (25, 8, 24, False),
    ],
)
def test_hybrid_enumerates_where_it_costs_no_more(
    n_active, n_permutations, exact_max_players, exact
):
    score = Score(permutations=n_permutations, exact_max_players=exact_max_players)
    assert is_exact(n_active, score) == exact


def test_hybrid_decides_per_image():
    toy, _ = brute_force.random_game(10, seed=1)
    game = as_game(toy, 10, 3)
    game.active[1, 4:] = False
    found = estimate(game, Score(permutations=4, exact_max_players=4), seeds(3))
    assert [f.estimator for f in found] == ["permutation", "exact", "permutation"]
    (alone,) = estimate(as_game(toy, 10), permutations(4), seeds(3)[2:])
    np.testing.assert_array_equal(found[2].shapley_value, alone.shapley_value)


def test_the_estimators_asked_for_are_taken():
    game = as_game(brute_force.random_game(5, seed=1)[0], 5)
    assert estimate(game, permutations(64), [0])[0].estimator == "permutation"
    assert estimate(game, EXACT, [0])[0].estimator == "exact"


# --- evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_permutations", [2, 6, 40])
def test_each_coalition_of_an_image_is_evaluated_once_and_counted(n_permutations):
    toy, _ = brute_force.random_game(10, seed=1)
    active = torch.ones(4, 10, dtype=torch.bool)
    active[1, 3:] = False
    active[2, 1:] = False
    active[3, ::2] = False
    game = Counting(toy, active)
    found = estimate(game, permutations(n_permutations), seeds(4))
    assert set(game.asked.values()) == {1}
    for image, estimated in enumerate(found):
        k = int(active[image].sum())
        # nobody and everybody were evaluated when the game was made
        assert estimated.n_evaluations == game.n_asked(image) + 2
        assert estimated.n_evaluations <= min(n_sampled(k, n_permutations), 2**k)
        assert estimated.n_permutations == n_permutations
    inactive = {
        (image, kept)
        for image, kept in game.asked
        if (np.frombuffer(kept, bool) & ~active[image].numpy()).any()
    }
    assert not inactive


def test_enumeration_evaluates_each_coalition_once():
    game = Counting(brute_force.random_game(6, seed=1)[0], torch.ones(2, 6, dtype=torch.bool))
    found = estimate(game, EXACT, seeds(2))
    assert set(game.asked.values()) == {1}
    assert [game.n_asked(0), game.n_asked(1)] == [f.n_evaluations for f in found] == [64, 64]


# --- permutations ---------------------------------------------------------------------------------

N_REPEATS = 2000


@pytest.mark.parametrize("n_permutations", [2, 8])
@pytest.mark.parametrize("name", ["glove", "airport", "random"])
def test_sampled_values_are_right_on_average(name, n_permutations):
    toy, known = brute_force.TOYS[name]
    game = as_game(toy, len(known), N_REPEATS)
    values = np.stack(
        [f.shapley_value for f in estimate(game, permutations(n_permutations), seeds(N_REPEATS))]
    )
    error = values.std(0, ddof=1) / np.sqrt(N_REPEATS)
    assert (np.abs(values.mean(0) - known) < 4 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["airport", "random"])
def test_standard_errors_are_those_of_the_sampling(name):
    """The squared error of an estimate is on average the square of its standard error."""
    toy, known = brute_force.TOYS[name]
    found = estimate(as_game(toy, len(known), N_REPEATS), permutations(6), seeds(N_REPEATS))
    squares = np.stack([(f.shapley_value - known) ** 2 for f in found])
    claimed = np.stack([f.standard_error for f in found]) ** 2
    difference = squares - claimed
    bound = 4 * difference.std(0, ddof=1) / np.sqrt(N_REPEATS)
    assert (np.abs(difference.mean(0)) < bound).all()
    assert (bound < 0.25 * squares.mean(0)).all()  # so the test above says something


def test_errors_shrink_with_the_number_of_permutations():
    toy, known = brute_force.TOYS["random"]
    squared = [
        np.mean(
            [
                (f.shapley_value - known) ** 2
                for f in estimate(as_game(toy, 10, 200), permutations(n), seeds(200))
            ]
        )
        for n in (4, 64)
    ]
    assert squared[0] / squared[1] > 12  # 16 in expectation, and more where coalitions repeat


def test_a_single_pair_leaves_the_error_unknown():
    toy, _ = brute_force.random_game(8, seed=1)
    game = as_game(toy, 8)
    game.active[0, 5] = False
    (found,) = estimate(game, permutations(2), [0])
    assert np.isnan(found.standard_error[game.active[0].numpy()]).all()
    assert found.standard_error[5] == 0  # a null player's value is known
    assert np.isfinite(found.shapley_value).all()


def test_the_same_seed_gives_the_same_values_whatever_else_is_scored():
    toy, _ = brute_force.random_game(9, seed=1)
    together = estimate(as_game(toy, 9, 5), permutations(4), seeds(5))
    (alone,) = estimate(as_game(toy, 9, 1), permutations(4), seeds(5)[3:4])
    np.testing.assert_array_equal(alone.shapley_value, together[3].shapley_value)
    np.testing.assert_array_equal(alone.standard_error, together[3].standard_error)
    assert len({f.shapley_value.tobytes() for f in together}) == 5


def test_null_players_get_zero_with_certainty():
    toy, _ = brute_force.random_game(10, seed=1)
    game = as_game(toy, 10, 2)
    game.active[:, [0, 7]] = False
    for found in estimate(game, permutations(6), seeds(2)):
        assert found.shapley_value[[0, 7]].tolist() == [0, 0]
        assert found.standard_error[[0, 7]].tolist() == [0, 0]
        assert (found.standard_error[[1, 2, 9]] > 0).all()
        assert found.active.tolist() == game.active[0].tolist()


# --- values that are no numbers -------------------------------------------------------------------


def broken_at(coalition: list[int], value: float) -> brute_force.Toy:
    def toy(kept: np.ndarray) -> np.ndarray:
        found = kept @ np.arange(1.0, 7.0)
        row = np.isin(np.arange(6), coalition)
        return np.where((kept == row).all(1), value, found)

    return toy


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("score", [EXACT, permutations(200)])
@pytest.mark.parametrize("coalition", [[], [2], [0, 1, 5], [0, 1, 2, 3, 4, 5]])
def test_a_value_that_is_no_number_is_named(coalition, score, value):
    with pytest.raises(NonFiniteValue) as caught:
        estimate(as_game(broken_at(coalition, value), 6, 2), score, seeds(2))
    assert (caught.value.image, caught.value.coalition) == (0, coalition)
    assert f"image 0 is {value} with the {len(coalition)} units {coalition}" in str(caught.value)


@pytest.mark.parametrize("score", [EXACT, permutations(200)])
def test_a_value_that_is_no_number_is_named_among_null_players(score):
    """The coalition is given by units, not by places among the active ones."""
    game = as_game(broken_at([3, 5], np.nan), 6, 3)
    game.active[0, 3] = game.active[1, 5] = False  # these images never meet the coalition
    game.active[2, :2] = False
    with pytest.raises(NonFiniteValue) as caught:
        estimate(game, score, seeds(3))
    assert (caught.value.image, caught.value.coalition) == (2, [3, 5])
