"""Which groups are deep: a consumer's input depends on another consumer's output."""

import pytest
import torch
from plain import groups_by_name, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.check import check_group
from shapray.network.find import find_groups


class Residual(nn.Module):
    """A stem, a block with a shortcut, a classifier. `how` is how the shortcut is joined."""

    def __init__(self, how: str = "add") -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 6, 1)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 3)
        if how == "detached":
            self.side = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(F.relu(self.conv1(x)))
        if self.how == "in place, result not used":
            x.add_(y)
        elif self.how == "detached":
            gated = x * (1 + y.detach().tanh())
            return self.fc(gated.mean((2, 3))) + self.side(y.mean((2, 3)))
        elif self.how == "control flow" and y.sum() < torch.inf:
            x = x + y
        else:
            x = x + y
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("how", ["add", "in place, result not used", "detached", "control flow"])
def test_residual_stream_is_deep_however_it_is_joined(how):
    model = lively(Residual(how))
    groups = groups_by_name(model)
    readers = ["conv1", "fc", "side"] if how == "detached" else ["conv1", "fc"]
    assert [consumer.module for consumer in groups["stem"].consumers] == readers
    assert not groups["stem"].flat
    assert groups["conv1"].flat
    assert check_group(model, groups["conv1"], images(), seed=0) is None


def test_consumer_called_twice_is_not_flat():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.again = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(F.relu(self.again(self.stem(x))))
            return self.fc(x.mean((2, 3)))

    model = lively(Twice())
    groups = groups_by_name(model)
    assert not groups["stem"].flat
    for group in groups.values():
        assert group.reason or check_group(model, group, images(), seed=0) is None


class Revived(nn.Module):
    """Unit 0 of `first` is silent until unit 1 goes; its consumers are called by keyword, and
    torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        assert float(x.sum()) > -1e9
        x = F.relu(self.first(x))
        x = F.relu(x + self.second(input=x))
        return self.last(input=x.mean((2, 3)))


def test_what_is_read_by_keyword_can_make_a_group_deep():
    group = find_groups(Revived().eval(), torch.zeros(1, 3, 4, 4))[0]
    assert group.name == "first"
    assert not group.flat
