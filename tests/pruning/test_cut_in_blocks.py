"""A network with a convolution in groups, from scores to a smaller one."""

import pytest
import torch
from networks import Aggregated, randomise
from torch import nn

import shapray
from shapray.config import Prune
from shapray.network.find import find_groups
from shapray.pruning.compressed import compressed

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


@pytest.mark.parametrize("first", ["conv1", "conv2"])
def test_rounds_leave_blocks_that_are_blocks(first):
    """With one unit in each, what a convolution reads and puts out would be one group."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = {"conv1": nn.Conv2d(3, 16, 3), "conv2": nn.Conv2d(16, 16, 3, groups=4)}
            for name in (first, *layers):
                self.add_module(name, layers[name])
            self.conv3, self.fc = nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

        def forward(self, x):
            x = self.conv2(self.conv1(x).relu()).relu()
            return self.fc(self.conv3(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, images = randomise(Network()), torch.randn(8, 3, 8, 8)
    for settings in ({"macs": 0.4}, {"macs": 0.4, "allocation": "uniform"}):
        small = shapray.compress(
            model, images, rounds=3, permutations=2, progress=False, **settings
        )
        assert small.conv2.groups == 4
        assert small.conv2.in_channels >= 8
        assert small(images).shape == (8, 5)
    with pytest.raises(ValueError, match="equally many units of each convolution group"):
        shapray.compress(model, images, rounds=3, macs=0.05, permutations=2, progress=False)


def test_a_cut_that_is_not_what_was_scored_is_said():
    """A forward that tells by the number of channels that it has been cut."""

    class Peeking(Aggregated):
        def forward(self, x):
            return super().forward(x) * (1 + (self.stem.out_channels == 3))

    torch.manual_seed(0)
    model, images = randomise(Peeking()), torch.randn(6, 3, 8, 8)
    groups = [group for group in find_groups(model, images[:1]) if group.reason is None]

    def notes(units):
        removed, asked = {"stem": units}, Prune(macs=0.5)
        return compressed(model, groups, removed, (), images, None, asked, seed=0).notes

    assert notes([1]) == ()
    [note] = notes([1, 2])
    assert note.startswith("the cut network is not the masked one that was scored: masked and")
