"""GRAIL's channel map, against least squares by brute force."""

import copy

import numpy as np
import pytest
import torch
from plain import without
from torch import nn

from jobs.benchmarks import grail
from shapray.engine.trace import fold
from shapray.network.find import find_groups


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 4),
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def groups_of(network, images):
    return [group for group in find_groups(network, images[:1]) if group.reason is None]


@pytest.mark.parametrize("ridge", [1e-12, 0.1])
def test_the_map_is_that_of_a_regression_of_all_channels_on_the_kept_ones(network, images, ridge):
    grams = grail.grams_of(network, ["2"], images)
    kept = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        read = network[:2](images).movedim(1, -1).flatten(0, -2).double().numpy()
    few = read[:, kept.numpy()]
    penalty = np.sqrt(ridge * (few**2).sum(0).mean()) * np.eye(few.shape[1])
    rows, targets = np.vstack([few, penalty]), np.vstack([read, np.zeros((len(penalty), 6))])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    gram = grams["2"]
    found = grail.channel_map(gram[kept][:, kept], gram[:, kept], ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_cut_costs_nothing_where_what_goes_is_a_combination_of_what_stays(network, images):
    network = copy.deepcopy(network)
    with torch.no_grad():
        first = network[0]
        for gone, stays, times in ((1, 0, 2.0), (4, 3, 0.5)):  # survives the ReLU
            first.weight[gone] = times * first.weight[stays]
            first.bias[gone] = times * first.bias[stays]
        groups, removed = groups_of(network, images), {"0": [1, 4]}
        grams = grail.grams_of(network, ["2", "5"], images)
        small = without(
            grail.compensated(network, groups, removed, grams, 1e-9), images[:1], removed
        )
        assert small[0].out_channels == 4
        assert torch.allclose(small(images), network(images), atol=1e-4)
        again = grail.step_by_step(network, groups, removed, images, 1e-9)
        assert torch.allclose(again(images), network(images), atol=1e-4)


def test_features_of_one_unit_behind_a_flatten_go_together(network, images):
    groups, removed = groups_of(network, images), {"2": [0, 3]}
    grams = grail.grams_of(network, ["2", "5"], images)
    silent = grail.compensated(network, groups, removed, grams, 1e-3)
    small = without(silent, images[:1], removed)
    assert small[5].in_features == 3 * 16
    with torch.no_grad():
        assert torch.allclose(small(images), silent(images), atol=1e-5)


def test_a_loss_curve_is_the_loss_of_the_networks_cut_one_group_at_a_time(network, images):
    [group, *_] = groups = groups_of(network, images)
    grams = grail.grams_of(network, ["2", "5"], images)
    order = [3, 0, 5, 1, 2, 4]
    found = grail.loss_curves(network, fold(network, images[:1]), group, order, images, grams)
    assert found[0] == 0
    with torch.no_grad():
        cut = grail.compensated(network, groups, {group.name: order[:5]}, grams, grail.RIDGE)
        expected = grail.divergence(cut(images), network(images))
    assert found[-1] == pytest.approx(expected, rel=1e-3)


def test_step_by_step_a_later_map_makes_good_what_an_earlier_one_has_left(network, images):
    groups, removed = groups_of(network, images), {"0": [0, 2, 3], "2": [1, 4]}
    grams = grail.grams_of(network, ["2", "5"], images)
    with torch.no_grad():
        wanted = network(images)
        at_once = grail.compensated(network, groups, removed, grams, 1e-6)(images)
        by_steps = grail.step_by_step(network, groups, removed, images, 1e-6)(images)
    assert (by_steps - wanted).square().mean() < (at_once - wanted).square().mean()
