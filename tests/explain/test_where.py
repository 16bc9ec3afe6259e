"""What positions add to a logit: it sums to what the cut changes, and is right position by
position where that can be told."""

import numpy as np
import pytest
import torch
from cases import case
from plain import groups_by_name, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.explain.where import contributions, resized
from shapray.network.consumers import mask_consumers
from shapray.network.group import Channels, Group

TARGETS = torch.tensor([2, 0, 1])


def without(model: nn.Module, group: Group, unit: int, pixels: Tensor) -> Tensor:
    kept = torch.ones(group.n_units, dtype=torch.bool)
    kept[unit] = False
    with torch.no_grad(), mask_consumers(model, group, kept):
        return model(pixels.clone())


def falls(model: nn.Module, group: Group, unit: int, pixels: Tensor, targets: Tensor) -> Tensor:
    """What each image's logit loses with the unit."""
    with torch.no_grad():
        whole = model(pixels.clone())
    return (whole - without(model, group, unit, pixels)).gather(1, targets[:, None])[:, 0]


# BatchNorm and none, flatten, pooling, residual streams, several readers, grouped layers, channels
# last, what is changed in place: all groups of all of them
@pytest.mark.parametrize(
    "name",
    [
        "Vgg",
        "Residual",
        "Concat",
        "Separable",
        "Functional",
        "SqueezeExcite",
        "ChannelsLastMlp",
        "Gated",
        "Statement",
        "digits",
    ],
)
def test_a_map_sums_to_what_the_cut_changes(name):
    of = case(name)
    targets = of.labels
    with torch.no_grad():
        scale = of.model(of.images.clone()).abs().max()
    for group in of.groups:
        for unit in (2, group.n_units - 1):
            maps = contributions(of.model, group, unit, of.images, targets, steps=64, batch=50)
            assert maps.dtype == torch.float64
            expected = falls(of.model, group, unit, of.images, targets)
            assert (maps.sum((1, 2)) - expected).abs().max() <= 0.01 * scale, (group.name, unit)


def by_zeroing(model: nn.Module, layer: str, unit: int, pixels: Tensor, targets: Tensor) -> Tensor:
    """Fall of the logit if `layer` puts out 0 at one position of a unit, position by position."""
    module = model.get_submodule(layer)
    with torch.no_grad():
        whole = model(pixels)
        height, width = module(pixels).shape[2:]
        maps = torch.zeros(len(pixels), height, width)
        for y in range(height):
            for x in range(width):

                def zero(_, __, output, y=y, x=x):
                    output[:, unit, y, x] = 0
                    return output

                handle = module.register_forward_hook(zero)
                maps[:, y, x] = (whole - model(pixels)).gather(1, targets[:, None])[:, 0]
                handle.remove()
    return maps


class LinearTail(nn.Module):
    """Behind conv1 there is nothing but linear layers, one of them in groups."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.conv1, self.tail = nn.Conv2d(3, 4, 3, padding=1), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv1(x))


@pytest.mark.parametrize(
    "tail",
    [
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 4 * 2, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 4, 3)),
    ],
    ids=["a grouped convolution", "a linear layer behind a flatten"],
)
def test_behind_a_unit_that_acts_linearly_every_position_adds_what_zeroing_it_takes(tail):
    model, pixels = lively(LinearTail(tail)), images()[:, :, :6, :4].contiguous()
    per_unit = 1 if isinstance(tail[0], nn.Conv2d) else 24
    place = "tail.0" if per_unit == 1 else "tail.1"
    reader = Channels(place, tuple(np.repeat(range(4), per_unit).tolist()))
    group = Group("conv1", 4, "conv", ("conv1", place), (reader,), True, None)
    maps = contributions(model, group, 3, pixels, TARGETS, steps=1)
    assert maps.shape == (3, 6, 4)
    assert torch.allclose(maps.float(), by_zeroing(model, "conv1", 3, pixels, TARGETS), atol=1e-5)


def test_a_square_is_handed_out_along_the_path():
    class Squared(nn.Module):
        """The logit is the square of the sum over one unit's map."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.sum = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.sum(self.conv1(x)).flatten(1) ** 2

    model = lively(Squared())
    nn.init.zeros_(model.sum.weight)
    model.sum.weight.data[:, 0] = 1
    group = groups_by_name(model)["conv1"]
    maps = contributions(model, group, 0, images(), torch.zeros(3, dtype=torch.int64), steps=2)
    read = model.conv1(images())[:, 0].detach()
    # the integral of 2 (t s) x over t from 0 to 1, where s is the map's sum
    assert torch.allclose(maps.float(), read * read.sum((1, 2), keepdim=True), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """One layer reads conv1 at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        return self.twice(x).mean((2, 3)) + self.twice(F.avg_pool2d(x, 4)).mean((2, 3))


def test_readings_of_a_shared_layer_at_two_resolutions_come_together_at_the_larger():
    model = lively(Twice())
    group = groups_by_name(model)["conv1"]
    maps = contributions(model, group, 1, images(), TARGETS, steps=1)
    assert maps.shape == (3, 8, 8)
    read = F.relu(model.conv1(images()))[:, 1]
    pooled = F.avg_pool2d(read, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    weights = model.twice.weight[TARGETS, 1, 0, 0]
    assert torch.allclose(maps.float(), weights.view(3, 1, 1) * (read + pooled) / 64, atol=1e-6)


def test_a_unit_behind_global_pooling_has_one_position():
    of = case("Residual")
    group = next(g for g in of.groups if g.consumers[0].module == "head")
    assert contributions(of.model, group, 3, of.images, of.labels, steps=4).shape == (5, 1, 1)


def test_it_is_the_same_whatever_the_batch_and_leaves_the_network_as_it_is():
    of = case("Vgg")
    group = of.groups[0]
    found = [
        contributions(of.model, group, 4, of.images, of.labels, steps=6, batch=batch)
        for batch in (1, 7, 100)
    ]
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[0], found[2], atol=1e-6)
    assert all(weight.grad is None for weight in of.model.parameters())


@pytest.mark.parametrize("size", [(3, 3), (6, 9), (1, 1), (2, 3), (5, 4)])
def test_another_resolution_keeps_the_sum(size):
    maps = torch.rand(2, 3, 3, dtype=torch.float64)
    found = resized(maps, *size)
    assert found.shape == (2, *size)
    assert torch.allclose(found.sum((1, 2)), maps.sum((1, 2)))
    if size == (6, 9):
        assert torch.allclose(found, maps.repeat_interleave(2, 1).repeat_interleave(3, 2) / 6)
