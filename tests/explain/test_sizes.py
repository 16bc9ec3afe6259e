"""Marginal contributions by the size of the coalition joined."""

import brute_force
import numpy as np
import pytest
import torch

from shapray.explain import sizes
from shapray.explain.sizes import BINS, Marginals, bins_of, marginals_by_size, means, size_rows
from shapray.shapley.coalitions import image_seed
from shapray.shapley.game import FunctionGame, NonFiniteValue


def as_game(toy: brute_force.Toy, n_players: int, n_images: int = 1) -> FunctionGame:
    return FunctionGame(lambda kept: torch.from_numpy(toy(kept.numpy())), n_players, n_images)


def seeds(n: int) -> list[int]:
    return [image_seed(5, "toy", str(image)) for image in range(n)]


def played(game: FunctionGame, n_permutations: int = 2, value=0.0) -> Marginals:
    """Compared with the same value of every active player."""
    values = np.where(game.active.numpy(), value, 0.0)
    return marginals_by_size(game, seeds(len(game.active)), n_permutations, values)


def test_bins_are_shares_of_the_others():
    assert bins_of(11).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert bins_of(3).tolist() == [0, 5, 9]
    assert bins_of(1).tolist() == [0]
    assert bins_of(0).tolist() == []
    assert (np.bincount(bins_of(200)) >= 19).all()


def test_an_additive_game_pays_the_same_at_every_size():
    weights = np.arange(15.0) - 4
    toy, _ = brute_force.additive(weights)
    alone = size_rows("g", played(as_game(toy, 15, 150))).to_pandas()
    with_values = size_rows("g", played(as_game(toy, 15, 150), value=weights)).to_pandas()
    for table in (alone.dropna(subset="unit"), with_values):
        expected = [weights.sum() if np.isnan(u) else weights[int(u)] for u in table.unit]
        np.testing.assert_allclose(table.marginal, expected, atol=1e-9)
        np.testing.assert_allclose(table.standard_error, 0, atol=1e-9)
    assert set(with_values.unit.dropna()) == set(range(15))
    assert with_values.unit.isna().sum() == BINS


def test_a_game_of_sizes_pays_its_steps():
    """Every player's marginal contribution to a coalition of s others is f(s + 1) - f(s)."""
    n = 21
    found = played(as_game(lambda kept: np.sqrt(kept.sum(1)), n, 60), n_permutations=4)
    steps, bins = np.diff(np.sqrt(np.arange(n + 1))), bins_of(n)
    expected = [steps[bins == bin_].mean() for bin_ in range(BINS)]
    table = size_rows("g", found).to_pandas()
    of_all = table[table.unit.isna()]
    np.testing.assert_allclose(of_all.marginal, n * np.array(expected))
    assert of_all.size_from.tolist() == [bin_ / BINS for bin_ in range(BINS)]
    assert of_all.size_to.tolist() == [(bin_ + 1) / BINS for bin_ in range(BINS)]
    assert (of_all.n_images == 60).all()
    for _, row in table.dropna(subset="unit").iterrows():
        here = steps[bins == round(row.size_from * BINS)]
        assert here.min() - 1e-9 <= row.marginal <= here.max() + 1e-9


@pytest.mark.parametrize("known", [0.0, 1.0, -2.0])
def test_means_are_those_of_brute_force_and_know_their_error(known):
    """Whatever they are compared with; with the Shapley values the least of an error."""
    n, n_images = 11, 2000
    toy, shapley = brute_force.random_game(n, seed=3)
    found = played(as_game(toy, n, n_images), value=known * shapley)
    of_size = brute_force.marginals_by_size(toy(brute_force.subsets(n)))
    bins = bins_of(n)
    expected = np.stack([of_size[:, bins == bin_].mean(1) for bin_ in range(BINS)], 1)
    expected = np.concatenate([expected, expected.sum(0, keepdims=True)])
    mean, error, telling = means(found)
    assert (np.abs(mean - expected) < 4 * error + 1e-9).all()
    assert (telling[:-1] < n_images).all()
    assert (telling[-1] == n_images).all()
    # the mean over sizes is the Shapley value
    weights = np.bincount(bins) / n
    off = np.sqrt((weights**2 * error**2).sum(1))[:-1]
    assert (np.abs(mean[:-1] @ weights - shapley) < 4 * off).all()
    assert mean[-1] @ weights == pytest.approx(shapley.sum())


def test_values_make_the_errors_small():
    """Of a nearly additive game, where the images differ, too."""
    n, n_images = 12, 30
    a = np.random.default_rng(0).normal(size=(n_images, n))
    game = as_game(lambda kept: np.zeros(len(kept)), n, n_images)
    game.reference = torch.from_numpy(np.stack([np.zeros(n_images), a.sum(1)], 1))[..., None]
    game.outputs = lambda images, kept: (torch.from_numpy(a)[images] * kept).sum(1)[:, None]
    blind = marginals_by_size(game, seeds(n_images), 8, np.zeros((n_images, n)))
    seeing = marginals_by_size(game, seeds(n_images), 8, a)
    mean, error, _ = means(seeing)
    np.testing.assert_allclose(mean[:-1], np.tile(a.mean(0)[:, None], BINS))
    np.testing.assert_allclose(
        error[:-1, 0], a.std(0, ddof=1) / n_images**0.5, rtol=0.3
    )  # by the images alone
    assert np.nanmedian(error[-1]) < 0.8 * np.nanmedian(means(blind)[1][-1])


def test_the_error_is_that_of_many_repeats():
    """Ratios of sums over 40 images, 300 times: their spread is what each says of itself."""
    n, n_images, n_times = 5, 40, 300
    toy, _ = brute_force.random_game(n, seed=6)
    found = played(as_game(toy, n, n_images * n_times), value=0.3)
    repeats = []
    for i in range(n_times):
        part = slice(i * n_images, (i + 1) * n_images)
        arrays = (found.value, found.beyond, found.n, found.of_all, found.n_evaluations)
        repeats.append(means(Marginals(*(array[part] for array in arrays))))
    inner = bins_of(n)[1:-1]  # there is but one empty and one full coalition of the others
    spread, claimed = (np.array(x)[:, :n, inner] for x in list(zip(*repeats, strict=True))[:2])
    ratio = spread.var(0, ddof=1) / np.nanmean(claimed**2, axis=0)
    assert (np.abs(ratio - 1) < 4 * np.sqrt(2 / n_times)).all()


def test_outputs_come_in_parts_that_have_room(monkeypatch):
    toy, _ = brute_force.random_game(9, seed=8)
    whole = played(as_game(toy, 9, 5), 4)
    monkeypatch.setattr(sizes, "OUTPUT_BYTES", 4 * 10 * 3)  # of three permutations
    parts = played(as_game(toy, 9, 5), 4)
    np.testing.assert_array_equal(whole.beyond, parts.beyond)


def test_null_players_are_worth_nothing_at_every_size():
    toy, weights = brute_force.additive(np.arange(1.0, 15.0) * (np.arange(14) < 12))
    game = as_game(toy, 14, 3)
    game.active[:, 12:] = False
    game.active[2] = False
    found = played(game, value=weights)
    assert (found.beyond[:, 12:] == 0).all()
    assert (found.n[:, 12:] > 0).all()
    assert (found.beyond[2] == 0).all()
    assert (found.of_all[2] == 0).all()
    table = size_rows("g", found).to_pandas()
    assert (table[table.unit == 13].marginal == 0).all()
    assert (table[table.unit == 13].n_images == 3).all()
    np.testing.assert_allclose(found.of_all[:2], weights.sum())
    assert found.n_evaluations.tolist() == [24, 24, 2]


def test_sizes_that_no_image_has_are_not_in_the_table():
    toy, _ = brute_force.random_game(3, seed=0)
    table = size_rows("g", played(as_game(toy, 3))).to_pandas()
    of_all = table[table.unit.isna()]
    assert of_all.size_from.tolist() == [0.0, 0.5, 0.9]
    assert table.standard_error.isna().all()  # of a single image
    assert not table.marginal.isna().any()


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_players(n):
    toy, weights = brute_force.additive(np.array([3.0, -1.0])[:n])
    found = played(as_game(toy, n, 2), value=weights)
    table = size_rows("g", found).to_pandas()
    assert set(table.marginal) == {*weights, weights.sum()}


def test_a_value_that_is_no_number_names_image_and_coalition():
    game = as_game(lambda kept: np.where(kept[:, 0] ^ kept[:, 1], np.inf, 1.0), 4, 2)
    game.active[0] = torch.tensor([False, False, True, True])
    with pytest.raises(NonFiniteValue, match="inf") as caught:
        played(game)
    assert caught.value.image == 1
    assert len({0, 1} & set(caught.value.coalition)) == 1
