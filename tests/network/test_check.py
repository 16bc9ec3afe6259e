"""What cutting a group shows: units that the dependency graph misreads."""

import pytest
import torch
from plain import Plain, groups_by_name, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.check import check_group


class Mixed(nn.Module):
    """Something between two convolutions that the dependency graph misreads or that mixes units."""

    def __init__(self, between) -> None:
        super().__init__()
        self.between = between
        self.conv1 = nn.Conv2d(3, 8, 1)
        width = between(torch.zeros(1, 8, 1, 1)).shape[1]
        self.conv2 = nn.Conv2d(width, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.between(self.conv1(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.softmax(1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),  # channel shuffle
        lambda x: x[:, :4] + x[:, 4:],
        lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
        lambda x: x.flip(1),
    ],
)
def test_misread_operators_are_found_by_the_check(between):
    model = lively(Mixed(between))
    group = groups_by_name(model)["conv1"]
    reason = group.reason or check_group(model, group, images(), seed=0)
    assert reason
    assert "\n" not in reason
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_check_names_error_and_coalition():
    model = lively(Mixed(lambda x: x.softmax(1)))
    reason = check_group(model, groups_by_name(model)["conv1"], images(), seed=0)
    assert reason.startswith("masked and pruned network differ: relative error 0.")
    assert reason.endswith("with 1 of 8 units removed")


def test_logits_that_are_all_zero_prove_nothing():
    model = lively(Plain())
    model.fc2.weight.data.zero_()
    model.fc2.bias.data.zero_()
    reason = check_group(model, groups_by_name(model)["conv1"], images(), seed=0)
    assert reason == (
        "masked and pruned network cannot be compared: all outputs are 0 with 1 of 5 units removed"
    )
