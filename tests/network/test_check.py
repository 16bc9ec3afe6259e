"""What cutting a group shows: channels that are mixed, or written into a forward."""

from dataclasses import replace

import pytest
import torch
from plain import Plain, groups_by_name, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.check import check_group
from shapray.network.group import Channels, Group


class Mixed(nn.Module):
    """Something between two convolutions that moves units or mixes them."""

    def __init__(self, between) -> None:
        super().__init__()
        self.between = between
        self.conv1 = nn.Conv2d(3, 8, 1)
        width = between(torch.zeros(1, 8, 2, 2)).shape[1]
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
        lambda x: x * x.amax(1, keepdim=True),
        lambda x: torch.einsum("bchw,bdhw->bdhw", x, x),
        lambda x: x.cumsum(1),
        lambda x: F.normalize(x, dim=1),
        lambda x: x.roll(3, 1),  # a cut network would roll others
    ],
)
def test_operators_that_mix_units_exclude_the_group(between):
    model = lively(Mixed(between))
    group = groups_by_name(model)["conv1"]
    reason = group.reason or check_group(model, group, images(), seed=0)
    assert reason
    assert "\n" not in reason
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
        lambda x: x.flip(1),
        lambda x: torch.cat([x, x], 1),
        lambda x: F.glu(x, 1),
        lambda x: x * torch.cat([x > 0, x < 1], 1).chunk(2, 1)[0],  # booleans that are moved
        lambda x: x.index_select(1, torch.arange(x.shape[1], dtype=torch.int32)),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: x.repeat(1, 2, 1, 1),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        F.instance_norm,
    ],
)
def test_operators_that_move_units_are_followed(between):
    model = lively(Mixed(between))
    group = groups_by_name(model)["conv1"]
    assert (group.reason or check_group(model, group, images(), seed=0)) is None


def _unread(model: nn.Module) -> Group:
    """The group of conv1, as if nobody had seen what lies between."""
    group = groups_by_name(model)["conv1"]
    units = tuple(range(8))
    return replace(
        group,
        n_units=8,
        reason=None,
        writers=(Channels("conv1", units),),
        consumers=(Channels("conv2", units),),
    )


def test_check_names_error_and_coalition():
    model = lively(Mixed(lambda x: x.softmax(1)))
    reason = check_group(model, _unread(model), images(), seed=0)
    assert reason.startswith("masked and pruned network differ: relative error 0.")
    assert reason.endswith("with 1 of 8 units removed")


def test_what_is_small_in_float32_and_no_rounding_is_a_difference():
    model = lively(Mixed(lambda x: x + 1e-3 * x.mean(1, keepdim=True)))
    reason = check_group(model, _unread(model), images(), seed=0)
    assert reason.startswith("masked and pruned network differ: relative error ")
    assert 1e-5 < float(reason.split()[7]) < 1e-4


def test_what_is_rounding_in_float32_is_none():
    def rounded(x: Tensor) -> Tensor:
        is_cut = x.shape[1] < 8
        return x * (1 + 2e-4 * is_cut * (x.dtype == torch.float32))

    model = lively(Mixed(rounded))
    assert check_group(model, _unread(model), images(), seed=0) is None


def test_a_leak_that_no_tolerance_shows_is_proved():
    model = lively(Mixed(lambda x: x + 1e-9 * x.mean(1, keepdim=True)))
    group = _unread(model)
    assert check_group(model, group, images(), seed=0) == (
        "its units reach the output by another way than through conv2"
    )


def test_a_forward_that_is_written_for_all_channels_is_named():
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(len(x), 8, *x.shape[2:])

    model = lively(Mixed(Fixed()))
    assert check_group(model, groups_by_name(model)["conv1"], images(), seed=0) == (
        "between, a Fixed, does not run with 1 of 8 units removed: it is written for all of them"
    )


def test_logits_that_are_all_zero_prove_nothing():
    model = lively(Plain())
    model.fc2.weight.data.zero_()
    model.fc2.bias.data.zero_()
    reason = check_group(model, groups_by_name(model)["conv1"], images(), seed=0)
    assert reason == (
        "masked and pruned network cannot be compared: all outputs are 0 with 1 of 5 units removed"
    )


def test_of_a_traced_network_the_reason_is_all_that_is_said(capsys):
    mixed = Mixed(lambda x: x.reshape(x.shape[0], 8, *[x.shape[2]] * 2))
    model = torch.fx.symbolic_trace(lively(mixed))
    reason = check_group(model, groups_by_name(model)["conv1"], images(), seed=0)
    assert reason is not None
    assert "its forward does not run with 1 of 8 units removed" in reason
    assert capsys.readouterr().err == ""
