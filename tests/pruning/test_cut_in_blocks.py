"""A network with a convolution in groups, from scores to a smaller one."""

import pytest
import torch
from networks import Aggregated, randomise

import shapray

HALVES = {"reduce.0": (range(4), range(4, 8)), "grouped.0": (range(3), range(3, 6))}


def test_a_plan_takes_equally_many_of_what_a_convolution_has_in_each_of_its_groups():
    torch.manual_seed(0)
    model, images, labels = randomise(Aggregated()), torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    settings = {"permutations": 2, "progress": False}
    scores = shapray.score(model, images, labels, **settings)
    cut = shapray.plan(scores, ratio=0.4)  # by the scores alone, without the network
    of_units = scores.to_pandas().set_index(["group", "unit"])["mean_abs"]
    for group, halves in HALVES.items():
        for half in halves:
            lowest = sorted(half, key=of_units[group].get)[: len(cut[group]) // 2]
            assert sorted(lowest) == [unit for unit in cut[group] if unit in half]
    assert cut["reduce.0"]

    small = shapray.prune(model, cut, images[:1])
    assert small.grouped[0].groups == 2
    assert small.grouped[0].in_channels == 8 - len(cut["reduce.0"])
    with pytest.raises(ValueError, match="equally many of each of its 2 blocks"):
        shapray.prune(model, {"reduce.0": [0, 1]}, images[:1])
    assert shapray.compress(model, images, labels, macs=0.5, **settings)(images).shape == (6, 5)
