"""Sizes by counts, beside those of networks that are really cut."""

import random

import pytest
import torch
from cases import case
from mechanisms_of_layers import Sequences, Transposed, Volumes
from mechanisms_over_channels import EfficientAttention
from networks import NETWORKS
from plain import Plain, groups_by_name, lively, without
from torch import nn

from shapray.network.cuttable import cuttable
from shapray.network.find import find_groups
from shapray.network.index_maps import removable
from shapray.network.surgery import prune_model
from shapray.pruning.evaluate import count_macs
from shapray.pruning.sizes import Sizes


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"resnet18"}))
def test_sizes_are_those_of_the_cut_network(name):
    model, example = case(name).model, case(name).example
    sizes = Sizes(model, find_groups(model, example), example)
    assert (sizes.all_parameters, sizes.all_macs) == count_macs(model, example)
    draw = random.Random(0)
    for only in [None, *case(name).groups]:  # several at once, then each alone
        removed = {
            group.name: removable(group, draw.sample(range(group.n_units), group.n_units))[
                : draw.randrange(group.n_units // group.step) * group.step
            ]
            for group in case(name).groups
            if only in (None, group)
        }
        expected = count_macs(without(model, example, removed), example)
        counts = {group: len(units) for group, units in removed.items()}
        found = sizes.parameters(counts), sizes.macs(counts)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [Transposed, Sequences, Volumes, EfficientAttention])
def test_of_any_convolution_they_are_those_of_the_cut_network(kind):
    example = torch.zeros(1, 3, 8, 8)
    network, groups = cuttable(lively(kind()), example)
    sizes = Sizes(network, groups, example)
    assert (sizes.all_parameters, sizes.all_macs) == count_macs(network, example)
    removed = {group.name: [0, 2] for group in groups if group.reason is None}
    expected = count_macs(prune_model(network, groups, removed), example)
    counts = dict.fromkeys(removed, 2)
    assert (sizes.parameters(counts), sizes.macs(counts)) == pytest.approx(expected, rel=1e-12)


def test_all_of_a_resnet():
    model, example = case("resnet18").model, case("resnet18").example
    groups = find_groups(model, example)
    counts = {group.name: group.n_units // 3 for group in groups if group.reason is None}
    pruned = without(model, example, {name: range(n) for name, n in counts.items()})
    sizes = Sizes(model, groups, example)
    found = sizes.parameters(counts), sizes.macs(counts)
    assert found == pytest.approx(count_macs(pruned, example), rel=1e-12)


def test_every_call_of_a_layer_counts():
    class Twice(Plain):
        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            y = self.conv2(x) + self.conv2(x.flip(2))
            return self.fc2(self.fc1(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)))

    model = lively(Twice())
    example = torch.zeros(1, 3, 8, 8)
    sizes = Sizes(model, list(groups_by_name(model).values()), example)
    pruned = without(model, example, {"conv1": [1, 3], "conv2": [0]})
    counts = {"conv1": 2, "conv2": 1}
    found = sizes.parameters(counts), sizes.macs(counts)
    assert found == pytest.approx(count_macs(pruned, example), rel=1e-12)
