"""Activations as they are read, against the network's own layers called one by one."""

import numpy as np
import torch
from networks import NETWORKS, randomise
from plain import Plain, groups_by_name, images, lively
from torch import nn
from torch.nn import functional as F

from shapray.explain.activations import activations
from shapray.pruning.criteria import MEMORY
from shapray.pruning.criteria.inputs import Inputs

LABELS = torch.tensor([2, 5, 2, 2, 5])


def inputs(model, groups, labels=LABELS, batch=2, n=5):
    return Inputs(model, groups, images(n), labels, 0, batch, MEMORY, None)


@torch.no_grad()
def of_plain(model, x):
    """What `Plain`'s layers read of conv1, conv2 and fc1: (n_images, n_units) each."""
    first = F.relu(model.bn1(model.conv1(x)))
    second = F.adaptive_avg_pool2d(F.relu(model.conv2(first)), 2)
    hidden = F.relu(model.fc1(second.flatten(1)))
    return {"conv1": first.abs().mean((2, 3)), "conv2": second.abs().mean((2, 3)), "fc1": hidden}


def test_means_are_those_of_the_layers_called_by_hand():
    model = lively(Plain())
    expected = of_plain(model, images(5))
    groups = [groups_by_name(model)[name] for name in expected]
    for batch in (1, 2, 64):
        found = activations(inputs(model, groups, batch=batch))
        assert list(found) == list(expected)
        for name, of_images in expected.items():
            of_group = found[name]
            assert np.allclose(of_group.overall, of_images.mean(0), atol=1e-6)
            assert of_group.labels.tolist() == [2, 5]
            assert np.allclose(of_group.by_label[0], of_images[[0, 2, 3]].mean(0), atol=1e-6)
            assert np.allclose(of_group.by_label[1], of_images[[1, 4]].mean(0), atol=1e-6)


def test_without_labels_there_are_means_over_all_images_alone():
    model = lively(Plain())
    group = groups_by_name(model)["fc1"]
    found = activations(inputs(model, [group], labels=None))["fc1"]
    assert np.allclose(found.overall, of_plain(model, images(5))["fc1"].mean(0), atol=1e-6)
    assert found.labels.shape == (0,)
    assert found.by_label.shape == (0, 6)


class Twice(nn.Module):
    """Two layers read conv1, one of them twice, and change signs and sizes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.once = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.twice, self.head = nn.Conv2d(4, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        x = self.conv1(x)
        y = self.once(x) + self.twice(-3 * x)
        y = y.mean((2, 3)) + self.twice(F.max_pool2d(x, 2)).mean((2, 3))
        return self.head(y)


def test_every_reading_counts_alike():
    model = lively(Twice())
    group = groups_by_name(model)["conv1"]
    x = model.conv1(images(5))
    readings = [x, -3 * x, F.max_pool2d(x, 2)]
    expected = torch.stack([reading.abs().mean((0, 2, 3)) for reading in readings]).mean(0)
    found = activations(inputs(model, [group]))["conv1"]
    assert np.allclose(found.overall, expected.detach(), atol=1e-6)


def test_layers_that_read_channels_last_are_read_along_them():
    model = randomise(NETWORKS["ChannelsLastMlp"]())
    group = groups_by_name(model)["up"]
    x = model.stem(images(5))
    read = F.relu(model.up(model.norm(model.depth(x).permute(0, 2, 3, 1))))
    found = activations(inputs(model, [group]))["up"]
    assert np.allclose(found.overall, read.abs().mean((0, 1, 2)), atol=1e-6)
