"""What cutting a group alone costs, beside networks that are cut and fitted one by one."""

import copy
import math

import pytest
import torch
from cases import case
from mechanisms import PaddedShortcut
from plain import groups_by_name, images, lively, without
from slow_fit import fitted, read_and_put_out
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.cuttable import cuttable
from shapray.network.group import CONSUMERS, Group
from shapray.network.index_maps import channels_left
from shapray.pruning.repair.curves import counts, loss_curves
from shapray.pruning.repair.least_squares import least_squares


class Forked(nn.Module):
    """Two layers read the first one: a convolution with a BatchNorm and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 9, 3), nn.Conv2d(9, 4, 3, bias=False)
        self.norm, self.right = (
            nn.BatchNorm2d(4),
            nn.Conv2d(9, 4, 3, padding=1, stride=2, bias=False),
        )
        self.hidden, self.head = nn.Linear(8, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = F.relu(self.norm(self.left(x))), self.right(x).tanh()
        both = torch.cat([left.mean((2, 3)), right.amax((2, 3))], 1)
        return self.head(F.relu(self.hidden(both)))


def kl(found: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.inference_mode():
        mine, right = (F.log_softmax(network(x.clone()).double(), 1) for network in (found, model))
    return float((right.exp() * (right - mine)).sum(1).mean())


def slowly(model: nn.Module, group: Group, units: list[int], x: Tensor) -> nn.Module:
    """Only the consumers refitted, to their own outputs, one hook and one plain fit each."""
    network = copy.deepcopy(model)
    for name, stay in channels_left([group], {group.name: units}, CONSUMERS).items():
        layer = model.get_submodule(name)
        read, outputs = read_and_put_out(model, layer, x)
        has_norm = name == "left"
        fixed = None if layer.bias is not None or has_norm else torch.zeros(len(layer.weight))
        weight, bias = fitted(
            layer, read, outputs, None if fixed is None else fixed.double().numpy(), stay
        )
        new = network.get_submodule(name)
        new.weight.data = weight.float()
        if layer.bias is not None or has_norm:
            new.bias = nn.Parameter(bias.float())
    return network


@pytest.mark.parametrize("name", ["stem", "left", "hidden"])
def test_a_point_is_the_group_cut_alone_and_its_consumers_fitted(name):
    model, x = lively(Forked()), images(40)
    group = groups_by_name(model)[name]
    assert group.flat
    assert group.reason is None
    order = list(range(group.n_units))[::-1]
    orders = {"up": order[::-1], "down": order}
    found = loss_curves(model, group, orders, x, repaired=True)
    assert list(found) == ["up", "down"]
    for key, losses in found.items():
        assert losses[0] == 0
        for count, loss in zip(counts(group.n_units)[1:], losses[1:], strict=True):
            # each half of the images with what was fitted on the other
            of_halves = [
                kl(slowly(model, group, orders[key][:count], fit), model, measured)
                for fit, measured in ((x[20:], x[:20]), (x[:20], x[20:]))
            ]
            assert loss == pytest.approx(sum(of_halves) / 2, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["stem", "left", "hidden"])
def test_a_point_that_is_not_repaired_is_the_cut_network(name):
    model, x = lively(Forked()), images(40)
    group = groups_by_name(model)[name]
    [losses] = loss_curves(model, group, {"": range(group.n_units)}, x, repaired=False).values()
    for count, loss in zip(counts(group.n_units), losses, strict=True):
        cut = without(model, x[:1], {name: range(count)})
        assert loss == pytest.approx(kl(cut, model, x), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("repaired", [True, False])
@pytest.mark.parametrize("name", ["Residual", "SqueezeExcite"])
def test_a_deep_group_is_cut_and_all_behind_it_fitted(name, repaired):
    c = case(name)
    group = next(group for group in c.groups if not group.flat)
    order = list(range(group.n_units))
    [losses] = loss_curves(c.model, group, {"": order}, c.images, repaired).values()
    assert losses[0] == pytest.approx(0, abs=1e-12)
    for count, loss in zip(counts(group.n_units)[1:], losses[1:], strict=True):
        removed, found = {group.name: order[:count]}, []
        halves = c.images[::2], c.images[1::2]
        for seen, other in (halves, halves[::-1]):
            whole = c.model
            if repaired:
                whole = least_squares(c.model, c.model, [group], removed, seen).network
            cut = without(whole, c.example, removed)
            found.append(kl(cut, c.model, other) * len(other) / len(c.images))
        assert loss == pytest.approx(sum(found), rel=1e-3, abs=1e-9)


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_a_network_that_cannot_be_traced_is_measured_without_repair():
    c = case("Statement")
    order = list(range(c.groups[0].n_units))
    repaired, bare = (
        loss_curves(c.model, c.groups[0], {"": order}, c.images, repaired)[""]
        for repaired in (True, False)
    )
    assert repaired == bare
    assert max(bare) > 0


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_very_few_images_are_enough_for_numbers(n_images):
    model, x = lively(Forked()), images(n_images)
    for name in ("stem", "hidden"):
        group = groups_by_name(model)[name]
        [losses] = loss_curves(model, group, {"": range(group.n_units)}, x, repaired=True).values()
        assert losses[0] == 0
        assert all(-1e-9 < loss < 1 for loss in losses)


def test_points_are_eighths_and_never_all_units():
    assert counts(1) == [0]
    assert counts(3) == [0, 1, 2]
    assert counts(8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert counts(64) == [0, 8, 16, 24, 32, 40, 48, 56, 63]


def test_a_layer_with_few_of_the_units_keeps_one():
    """The first layer of a stream that gets wider has two of its four units."""
    model, groups = cuttable(lively(PaddedShortcut()), images()[:1])
    (group,) = [group for group in groups if group.name == "stem"]
    curves = loss_curves(model, group, {"by number": [0, 1, 2, 3]}, images(8), True)
    assert len(curves["by number"]) == len(counts(4))
    assert all(math.isfinite(loss) for loss in curves["by number"])
