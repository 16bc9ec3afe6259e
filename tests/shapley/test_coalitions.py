"""Coalitions: streams, permutations, pairs, prefixes, subsets, weights."""

import math

import numpy as np
import pytest
import torch

from shapray.shapley.coalitions import (
    all_subsets,
    antithetic_permutations,
    distinct,
    image_seed,
    paired_coalitions,
    prefix_coalitions,
    repeated,
    shapley_weights,
    size_weights,
    stratified_coalitions,
)


def test_a_stream_depends_on_seed_group_and_image_and_on_nothing_else():
    base = image_seed(0, "layer1.conv1", "7")
    assert base == image_seed(0, "layer1.conv1", "7")
    others = [(1, "layer1.conv1", "7"), (0, "layer1.conv2", "7"), (0, "layer1.conv1", "8")]
    # neighbours whose names run into each other when joined
    others += [(0, "layer1.conv", "17"), (0, "layer1.conv17", ""), (-1, "layer1.conv1", "7")]
    assert len({base, *(image_seed(*other) for other in others)}) == 1 + len(others)
    # written down: another number would change every score
    assert image_seed(0, "conv1", "0") == 0xF1FB69892C69A2A9B17A6050B9E8A1D


def test_permutations_are_permutations_and_antithetic():
    orders = antithetic_permutations(9, 20, seed=3)
    assert orders.shape == (20, 9)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert (orders[1::2] == orders[::2, ::-1]).all()
    assert len({tuple(order) for order in orders}) == 20


@pytest.mark.parametrize("n_players", [1, 2, 7, 64])
def test_a_longer_draw_begins_with_the_shorter(n_players):
    longer = antithetic_permutations(n_players, 64, seed=11)
    for n in (2, 4, 30):
        assert (antithetic_permutations(n_players, n, seed=11) == longer[:n]).all()


def test_seeds_give_different_permutations_even_next_to_each_other():
    draws = [antithetic_permutations(12, 4, seed) for seed in (0, 1, 2, 2**64, 2**128 - 1)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_permutations_are_uniform():
    n_pairs = 6000
    counts: dict[tuple, int] = {}
    for order in antithetic_permutations(4, 2 * n_pairs, seed=1)[::2]:
        counts[tuple(order)] = counts.get(tuple(order), 0) + 1
    expected = n_pairs / 24
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert len(counts) == 24
    assert chi_square < 23 + 4 * math.sqrt(2 * 23)  # 4 sigma of a chi-square of 23


@pytest.mark.parametrize("n_players", [2, 3, 16])
def test_pairs_have_their_sizes_and_all_coalitions_of_a_size_alike(n_players):
    n_pairs = 20000
    members = paired_coalitions(n_players, n_pairs, seed=5)
    sizes = np.bincount(members.sum(1), minlength=n_players + 1)
    assert sizes[0] == sizes[-1] == 0
    share = size_weights(n_players)
    bound = 4.5 * np.sqrt(n_pairs * share * (1 - share))
    assert (np.abs(sizes[1:-1] - n_pairs * share) <= bound).all()
    for size in range(1, n_players):
        n = sizes[size]
        share = size / n_players
        counts = members[members.sum(1) == size].sum(0)
        assert (np.abs(counts - n * share) < 4.5 * math.sqrt(n * share * (1 - share))).all()


def test_pairs_weigh_all_their_coalitions_alike():
    """The length of a coalition's share in the values over its size's probability is the same."""
    n = 11
    size = np.arange(1, n)
    length = np.sqrt(1 / size + 1 / (n - size))  # of 1/s for members, -1/(n-s) for the others
    ratio = length / size_weights(n)
    np.testing.assert_allclose(ratio, ratio[0])
    assert size_weights(n).sum() == pytest.approx(1)


@pytest.mark.parametrize("n_players", [9, 16, 63])
def test_stratified_coalitions_have_every_size_as_often_as_it_is_drawn(n_players):
    n = 2 * (n_players - 1)
    sizes = np.bincount(stratified_coalitions(n_players, n).sum(1), minlength=n_players + 1)
    assert sizes[0] == sizes[-1] == 0
    assert (sizes[1:-1] >= 1).all()
    assert (np.abs(sizes[1:-1] - n * size_weights(n_players)) < 1).all()


def test_a_longer_draw_of_pairs_begins_with_the_shorter():
    longer = paired_coalitions(13, 60, seed=11)
    assert (paired_coalitions(13, 17, seed=11) == longer[:17]).all()
    assert (paired_coalitions(13, 60, seed=12) != longer).any()


@pytest.mark.parametrize("n_players", [3, 8, 9, 20])
def test_distinct_finds_each_coalition_and_each_complement_once(n_players):
    members = paired_coalitions(n_players, 40, seed=3)
    first, place = distinct(members)
    both = np.stack([members, ~members], axis=1)
    every = [row.tobytes() for row in both.reshape(80, n_players)]
    assert [every[i] for i in first] == list(dict.fromkeys(every))
    for pair in range(40):
        for half in range(2):
            assert every[first[place[pair, half]]] == every[2 * pair + half]


def test_prefixes():
    orders = torch.tensor([[2, 0, 1], [1, 3, -1]])
    found = prefix_coalitions(orders, 4).int().tolist()
    assert found[0] == [[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
    assert found[1] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]]


def test_prefixes_of_chains_without_players():
    assert prefix_coalitions(torch.full((2, 3), -1), 2).sum() == 0
    assert prefix_coalitions(torch.empty(2, 0, dtype=torch.int64), 2).shape == (2, 1, 2)


def test_all_subsets():
    assert all_subsets(0).shape == (1, 0)
    masks = all_subsets(5)
    assert ((masks * 2 ** torch.arange(5)).sum(1) == torch.arange(32)).all()


@pytest.mark.parametrize("n", [1, 2, 12, 24])
def test_weights_are_those_of_the_definition(n):
    weights = shapley_weights(n).tolist()
    for size, weight in enumerate(weights):
        exact = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
        assert weight == pytest.approx(exact, rel=1e-12)
    # over all coalitions that a player can join they are probabilities
    assert sum(math.comb(n - 1, s) * w for s, w in enumerate(weights)) == pytest.approx(
        1, abs=1e-12
    )


def test_weights_of_many_players_do_not_overflow():
    weights = shapley_weights(500)
    assert weights.isfinite().all()
    assert weights[0].item() == pytest.approx(1 / 500)


def test_repeated_finds_equal_coalitions_of_an_image_and_no_others():
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(5), 8)
    orders = np.stack([random.permutation(6) for _ in images])
    orders[8:16, 4:] = -1  # an image whose chains end early (players differ by chain: no matter)
    first = repeated(orders, images).ravel()
    met: dict[tuple, int] = {}
    for chain, (image, order) in enumerate(zip(images, orders, strict=True)):
        for step in range(7):
            key = (image, frozenset(order[:step].tolist()) - {-1})
            position = met.setdefault(key, chain * 7 + step)
            assert first[chain * 7 + step] == position
