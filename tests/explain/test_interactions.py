"""Pairwise Shapley interactions of games with known ones: enumerated, drawn, and in a table."""

import brute_force
import numpy as np
import pytest
import torch

from shapray.explain.interactions import (
    Interactions,
    Pair,
    base_coalitions,
    exact_indices,
    interaction_rows,
    interactions,
    n_evaluations,
    pairs_at_ends,
)
from shapray.shapley.coalitions import image_seed
from shapray.shapley.game import FunctionGame, NonFiniteValue


def as_game(toy: brute_force.Toy, n_players: int, n_images: int = 1) -> FunctionGame:
    return FunctionGame(lambda kept: torch.from_numpy(toy(kept.numpy())), n_players, n_images)


def seeds(n: int) -> list[int]:
    return [image_seed(3, "toy", str(image)) for image in range(n)]


def all_pairs(n: int) -> np.ndarray:
    return np.argwhere(np.triu(np.ones((n, n)), 1))


def pairwise(n: int, seed: int = 0) -> tuple[brute_force.Toy, np.ndarray]:
    """sum a_i x_i + sum b_ij x_i x_j, whose interactions are the b_ij at every coalition."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=n), np.triu(random.normal(size=(n, n)), 1)
    return lambda kept: kept @ a + np.einsum("ri,ij,rj->r", kept, b, kept), b


def unanimity(n: int, members: list[int]) -> brute_force.Toy:
    return lambda kept: kept[:, members].all(1).astype(float)


EXACT = {"exact_max_players": 12, "n_draws": 2}
DRAWN = {"exact_max_players": 0, "n_draws": 2}


@pytest.mark.parametrize("how", [EXACT, DRAWN])
def test_an_additive_game_has_none(how):
    toy, _ = brute_force.additive(np.arange(12.0) - 4)
    found = interactions(as_game(toy, 12), np.array([[0, 3], [11, 5]]), seeds(1), **how)
    np.testing.assert_allclose(found.index, 0, atol=1e-12)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-12)


@pytest.mark.parametrize("how", [EXACT, DRAWN])
def test_products_of_two_players_are_their_interactions_in_every_draw(how):
    toy, b = pairwise(12)
    pairs = all_pairs(12)
    found = interactions(as_game(toy, 12, 3), pairs, seeds(3), **how)
    np.testing.assert_allclose(found.index, np.tile(b[pairs[:, 0], pairs[:, 1]], (3, 1)), atol=1e-9)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-9)
    assert found.exact.all() == (how is EXACT)


def test_players_who_need_all_of_a_few_share_alike():
    """Unanimity of t players: 1 / (t - 1) for a pair of them (Grabisch and Roubens 1999)."""
    game = as_game(unanimity(9, [1, 4, 5, 8]), 9)
    found = interactions(game, np.array([[1, 4], [8, 5], [0, 1], [0, 2]]), seeds(1), **EXACT)
    np.testing.assert_allclose(found.index[0], [1 / 3, 1 / 3, 0, 0], atol=1e-12)


def test_of_a_game_of_sizes_the_steps_at_both_ends_tell():
    """v(S) = f(|S|): the mean second difference telescopes."""
    n, f = 10, np.sqrt
    found = interactions(as_game(lambda kept: f(kept.sum(1)), n), all_pairs(n), seeds(1), **EXACT)
    expected = ((f(n) - f(n - 1)) - (f(1) - f(0))) / (n - 1)
    np.testing.assert_allclose(found.index, expected, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_exact_ones_are_those_of_brute_force(n):
    values = np.random.default_rng(n).normal(size=2**n)
    pairs = all_pairs(n)
    expected = brute_force.interactions(values)[pairs[:, 0], pairs[:, 1]]
    np.testing.assert_allclose(exact_indices(values, pairs), expected, atol=1e-12)


def test_exact_ones_are_those_of_shapiq():
    exact = pytest.importorskip("shapiq.game_theory.exact")
    n = 7
    toy, _ = brute_force.random_game(n, seed=1)
    theirs = exact.ExactComputer(lambda kept: toy(kept.astype(bool)), n)("SII", order=2)
    pairs = all_pairs(n)
    found = interactions(as_game(toy, n), pairs, seeds(1), **EXACT)
    expected = [theirs[tuple(pair)] for pair in pairs.tolist()]
    np.testing.assert_allclose(found.index[0], expected, atol=1e-9)


def test_drawn_ones_are_unbiased_and_know_their_error():
    """Many images of one game: their mean is the exact index within four standard errors, and the
    errors claimed are those of the spread, or larger, as the draws are spread out."""
    n, n_images = 8, 1500
    toy, _ = brute_force.random_game(n, seed=2)
    pairs = np.array([[0, 1], [2, 7], [3, 1]])
    game = as_game(toy, n, n_images)
    found = interactions(game, pairs, seeds(n_images), exact_max_players=0, n_draws=3)
    assert not found.exact.any()
    values = toy(brute_force.subsets(n))
    expected = brute_force.interactions(values)[pairs[:, 0], pairs[:, 1]]
    spread = found.index.var(0, ddof=1)
    assert (np.abs(found.index.mean(0) - expected) < 4 * np.sqrt(spread / n_images)).all()
    claimed = found.standard_error**2
    off = 4 * np.hypot(claimed.std(0), (found.index - expected).std(0) ** 2 * 2**0.5)
    assert (claimed.mean(0) > spread - off / n_images**0.5).all()
    assert (claimed.mean(0) < 1.5 * spread).all()


def test_coalitions_to_draw_are_of_all_sizes_alike():
    n, n_draws = 5, 4
    drawn = np.concatenate([base_coalitions(n, n_draws, seed) for seed in range(3000)])
    both = np.concatenate([drawn, ~drawn])
    counts = np.bincount(both.sum(1), minlength=n + 1)
    share = 1 / (n + 1)
    assert (np.abs(counts / len(both) - share) < 4 * np.sqrt(share / len(drawn))).all()


@pytest.mark.parametrize("how", [EXACT, DRAWN])
def test_null_players_interact_with_nobody_and_take_no_coalitions(how):
    n = 20
    toy, b = pairwise(n)
    game = as_game(toy, n, 2)
    game.active[0, 10:] = False
    game.active[1] = False
    asked = []
    outputs = game.outputs
    game.outputs = lambda images, kept: asked.append(kept) or outputs(images, kept)
    found = interactions(game, np.array([[1, 2], [1, 15], [16, 17]]), seeds(2), **how)
    np.testing.assert_allclose(found.index, [[b[1, 2], 0, 0], [0, 0, 0]], atol=1e-9)
    assert (found.index[0, 1:] == 0).all()
    assert (found.standard_error[:, 1:] == 0).all()
    assert not torch.cat(asked)[:, 10:].any()
    assert found.n_evaluations.tolist() == [sum(map(len, asked)), 0]


def test_evaluations_are_as_many_as_promised():
    toy, _ = pairwise(15)
    pairs = all_pairs(4)
    found = interactions(as_game(toy, 15), pairs, seeds(1), exact_max_players=3, n_draws=5)
    assert found.n_evaluations[0] == n_evaluations(15, len(pairs), 3, 5) == 5 * 2 * (1 + 4 + 6)
    found = interactions(as_game(toy, 15), pairs, seeds(1), exact_max_players=15, n_draws=5)
    assert found.n_evaluations[0] == n_evaluations(15, len(pairs), 15, 5) == 2**15


def test_the_same_seed_gives_the_same_whatever_stands_beside_it():
    toy, _ = brute_force.random_game(9, seed=4)
    both = interactions(as_game(toy, 9, 2), all_pairs(3), seeds(2), **DRAWN)
    alone = interactions(as_game(toy, 9), all_pairs(3), seeds(2)[1:], **DRAWN)
    np.testing.assert_array_equal(both.index[1], alone.index[0])
    assert (both.index[0] != both.index[1]).any()


@pytest.mark.parametrize("how", [EXACT, DRAWN])
def test_a_value_that_is_no_number_names_image_and_coalition(how):
    game = as_game(lambda kept: np.where(kept[:, 0] & kept[:, 1], np.nan, 1.0), 11, 2)
    game.active[:, 2] = False
    game.active[0] = False
    with pytest.raises(NonFiniteValue, match="nan") as caught:
        interactions(game, np.array([[0, 1]]), seeds(2), **how)
    assert caught.value.image == 1
    assert {0, 1} <= set(caught.value.coalition)
    assert 2 not in caught.value.coalition


def test_pairs_are_those_of_both_ends():
    found = pairs_at_ends([5, 0, 3, 2, 4, 1], m=2)
    assert found == [
        Pair(0, 1, "across"),
        Pair(0, 4, "across"),
        Pair(0, 5, "bottom"),
        Pair(1, 4, "top"),
        Pair(1, 5, "across"),
        Pair(4, 5, "across"),
    ]
    assert len(pairs_at_ends(list(range(64)))) == 28


@pytest.mark.parametrize(
    ("order", "expected"),
    [([], []), ([0], []), ([1, 0], [(0, 1, "across")]), ([2, 1, 0], [(0, 2, "across")])],
)
def test_small_groups_have_fewer_pairs(order, expected):
    assert [(p.unit, p.other, p.kind) for p in pairs_at_ends(order)] == expected


def test_rows_are_means_with_both_errors():
    found = Interactions(
        index=np.array([[1.0], [3.0]]),
        standard_error=np.array([[0.3], [0.4]]),
        exact=np.array([False, True]),
        n_evaluations=np.array([5, 5]),
    )
    (row,) = interaction_rows("g", [Pair(2, 7, "top")], found).to_pylist()
    assert row == {
        "group": "g",
        "unit": 2,
        "other": 7,
        "kind": "top",
        "interaction": 2.0,
        "standard_error": pytest.approx(0.25),
        "total_error": pytest.approx(1.0),
        "n_images": 2,
        "n_exact": 1,
    }


def test_a_single_image_has_no_total_error():
    toy, _ = pairwise(6)
    found = interactions(as_game(toy, 6), np.array([[0, 1]]), seeds(1), **EXACT)
    (row,) = interaction_rows("g", [Pair(0, 1, "across")], found).to_pylist()
    assert row["total_error"] is None
    assert (row["standard_error"], row["n_exact"]) == (0.0, 1)
