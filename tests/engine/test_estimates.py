"""Shapley values of networks: the exact ones by brute force, the sampled ones on average."""

import brute_force
import numpy as np
import pytest
import torch
from cases import case, hook_masked
from plain import without

from shapray.config import Score
from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.find import find_groups
from shapray.shapley.estimators import estimate


def test_exact_values_of_a_convolution_are_those_of_brute_force():
    """All 4,096 coalitions through the network with hooks: the digits' without 4 of 16 units."""
    network = case("digits")
    model = without(network.model, network.example, {"conv3": [3, 7, 12, 14]})
    group = next(g for g in find_groups(model, network.example) if g.name == "conv3")
    assert group.n_units == 12
    image, label = network.images[1:2], int(network.labels[1])
    values = []
    for part in np.array_split(brute_force.subsets(12), 4):
        images = image.expand(len(part), -1, -1, -1)
        logits = hook_masked(model, group, images, torch.from_numpy(part)).double()
        values.append(logits[:, label] - logits.logsumexp(1))
    known = brute_force.shapley(torch.cat(values).numpy())
    split = NetworkSplit(fold(model, network.example), group, network.example)
    game = split.game(network.images, network.labels, "neg_cross_entropy")
    found = estimate(game, Score(estimator="exact"), list(range(6)))[1]
    assert found.estimator == "exact"
    np.testing.assert_allclose(found.shapley_value, known, rtol=0, atol=1e-4)
    assert found.shapley_value.sum() == pytest.approx(found.value_all - found.value_none, abs=1e-9)


@pytest.mark.parametrize("name", ["Vgg", "Residual", "SqueezeExcite", "digits"])
def test_sampled_values_of_networks(name):
    """Of one image many times: on average the exact ones, as far off as their errors say."""
    network, n_repeats = case(name), 200
    group = next(g for g in network.groups if g.n_units <= 16)
    game = network.split(group).game(
        network.images[:1].expand(n_repeats, -1, -1, -1),
        network.labels[:1].expand(n_repeats),
        "neg_cross_entropy",
    )
    (exact,) = estimate(
        network.split(group).game(network.images[:1], network.labels[:1], "neg_cross_entropy"),
        Score(estimator="exact"),
        [0],
    )
    found = estimate(game, Score(estimator="permutation", permutations=8), list(range(n_repeats)))
    values = np.stack([f.shapley_value for f in found])
    errors = np.stack([f.standard_error for f in found])
    bound = 4 * values.std(0, ddof=1) / np.sqrt(n_repeats) + 1e-6
    assert (np.abs(values.mean(0) - exact.shapley_value) < bound).all()
    assert 0.6 < (errors**2).mean() / ((values - exact.shapley_value) ** 2).mean() < 1.6
    for f in found:
        assert f.value_all == pytest.approx(exact.value_all, abs=1e-5)
        assert f.shapley_value.sum() == pytest.approx(f.value_all - f.value_none, abs=1e-9)
