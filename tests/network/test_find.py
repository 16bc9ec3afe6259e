"""Which channels go together, who reads them, and why a group is not scored."""

import copy

import pytest
import torch
from plain import EXAMPLE, Plain, groups_by_name, images, lively, without
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.check import check_group


class Concat(nn.Module):
    """Two branches side by side, one BatchNorm, read by a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(7)
        self.conv = nn.Conv2d(7, 5, 3)
        self.fc = nn.Linear(5 + 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = F.relu(self.bn(torch.cat([self.left(x), self.right(x)], 1)))
        features = [self.conv(both).mean((2, 3)), both.mean((2, 3))]
        return self.fc(torch.cat(features, 1))


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def test_linear_layer_behind_flatten_reads_several_features_per_unit():
    group = groups_by_name(lively(Plain()))["conv2"]
    (consumer,) = group.consumers
    assert consumer.module == "fc1"
    assert consumer.unit_of_channel == tuple(unit for unit in range(4) for _ in range(4))
    assert group.modules == ("conv2", "fc1")


def test_hidden_linear_layer_is_a_group_and_the_classifier_is_not():
    groups = groups_by_name(lively(Plain()))
    assert list(groups) == ["conv1", "conv2", "fc1", "fc2"]
    assert (groups["fc1"].kind, groups["fc1"].reason, groups["fc1"].n_units) == ("linear", None, 6)
    assert groups["fc2"].reason == "its units are the network's outputs"
    assert groups["conv1"].modules == ("conv1", "bn1", "conv2")


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Softmax(1), nn.BatchNorm1d(3)])
def test_outputs_are_found_behind_other_layers(tail):
    groups = groups_by_name(lively(nn.Sequential(Plain(), tail)))
    assert groups["0.fc2"].reason == "its units are the network's outputs"
    assert groups["0.fc1"].reason is None


def test_concat_gives_each_branch_its_channels():
    model = lively(Concat())
    groups = groups_by_name(model)
    wanted = {
        "left": {"conv": (0, 1, 2, 3, -1, -1, -1), "fc": (*(-1,) * 5, 0, 1, 2, 3, -1, -1, -1)},
        "right": {"conv": (*(-1,) * 4, 0, 1, 2), "fc": (*(-1,) * 9, 0, 1, 2)},
        "conv": {"fc": (0, 1, 2, 3, 4, *(-1,) * 7)},
    }
    for name, consumers in wanted.items():
        assert {c.module: c.unit_of_channel for c in groups[name].consumers} == consumers
        assert check_group(model, groups[name], images(), seed=0) is None
    assert not groups["left"].flat  # fc reads the branch and what conv makes of it
    assert groups["conv"].flat


def test_depthwise_convolution_is_coupled_and_no_consumer():
    model = lively(Depthwise())
    groups = groups_by_name(model)
    assert list(groups) == ["0", "5", "8"]
    assert groups["0"].modules == ("0", "1", "3", "4", "5")
    assert [consumer.module for consumer in groups["0"].consumers] == ["5"]
    assert groups["0"].flat
    assert check_group(model, groups["0"], images(), seed=0) is None


def test_module_with_two_names_is_scored_by_the_first():
    class Shared(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.conv2

    model = lively(Shared())
    groups = groups_by_name(model)
    assert list(groups) == ["conv1", "conv2", "fc1", "fc2"]
    for name in ("conv1", "conv2", "fc1"):
        assert check_group(model, groups[name], images(), seed=0) is None
    small = without(model, EXAMPLE, {"conv2": [1]})
    assert small.alias is small.conv2


def test_layers_with_one_weight_are_excluded():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(F.relu(self.a(self.stem(x)))).mean((2, 3)))

    groups = groups_by_name(lively(Tied()))
    assert groups["stem"].reason == "a and b share their weights"


def test_what_cannot_be_scored_is_listed_with_its_reason():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.grouped = nn.Conv2d(8, 8, 1, groups=2)
            self.up = nn.ConvTranspose2d(8, 4, 2, groups=2)
            self.narrow = nn.Conv2d(4, 1, 1)
            self.unused = nn.Conv2d(3, 4, 1)
            self.fc = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.narrow(self.up(self.grouped(self.a(x)))).mean((2, 3)))

    groups = groups_by_name(lively(Odd()))
    assert {name: group.reason for name, group in groups.items()} == {
        "a": None,
        "grouped": "up reads it, a ConvTranspose2d in groups",
        "up": "up is a ConvTranspose2d in groups",
        "narrow": "it has a single unit",
        "unused": "never called, or the network's output does not depend on it",
        "fc": "its units are the network's outputs",
    }
    model = lively(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2), Plain())
    )
    model[2].conv1 = nn.Conv2d(4, 5, 1)
    assert groups_by_name(model)["0"].reason == "1 reads it, a ConvTranspose2d in groups"


def test_linear_layers_on_tokens():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(3, 8)
            self.down = nn.Linear(8, 4)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1)  # (n, h, w, c)
            return self.fc(self.down(F.relu(self.up(x))).mean((1, 2)))

    model = lively(Tokens())
    group = groups_by_name(model)["up"]
    assert group.reason is None
    assert check_group(model, group, images(), seed=0) is None


def test_model_is_left_as_it_was():
    model = lively(Plain())
    model.conv1.weight.requires_grad_(False)
    model.bn1.train()
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        groups = groups_by_name(model)
    model.bn1.eval()
    assert check_group(model, groups["conv1"], images(), seed=0) is None
    groups_by_name(model.train())
    assert all(module.training for module in model.modules())
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Glued(nn.Module):
    """Two channels of `a` become one before anybody reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 10, 1)
        self.b, self.last = nn.Conv2d(5, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.glu(self.a(F.relu(self.stem(x))), 1))
        return self.last(x.mean((2, 3)))


def test_several_channels_of_the_root_are_one_unit():
    model = lively(Glued())
    group = groups_by_name(model)["a"]
    assert group.n_units == 5
    assert group.writers[0].unit_of_channel == (0, 1, 2, 3, 4) * 2
    assert check_group(model, group, images(), seed=0) is None
