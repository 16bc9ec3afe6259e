"""Masking a group where it is read."""

import copy

import torch
from plain import Plain, groups_by_name, images, lively
from torch import nn

from shapray.network.consumers import mask_consumers


def test_masked_network_equals_one_made_smaller_by_hand():
    model = lively(Plain())
    group = groups_by_name(model)["conv1"]
    assert (group.n_units, group.kind, group.reason) == (5, "conv", None)
    for bits in range(1, 2**5):
        keep = torch.tensor([bool(bits >> unit & 1) for unit in range(5)])
        smaller = copy.deepcopy(model)
        smaller.conv1 = nn.Conv2d(3, int(keep.sum()), 3, padding=1)
        smaller.conv1.weight.data = model.conv1.weight.data[keep]
        smaller.conv1.bias.data = model.conv1.bias.data[keep]
        smaller.bn1 = nn.BatchNorm2d(int(keep.sum())).eval()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(smaller.bn1, name).data = getattr(model.bn1, name).data[keep]
        smaller.conv2.weight.data = model.conv2.weight.data[:, keep]
        with mask_consumers(model, group, keep):
            masked = model(images())
        torch.testing.assert_close(masked, smaller(images()))
    full = model(images())
    with mask_consumers(model, group, torch.ones(5, dtype=torch.bool)):
        assert torch.equal(model(images()), full)
    assert torch.equal(model(images()), full)  # hooks are gone


def test_masking_the_convolution_itself_is_something_else():
    model = lively(Plain())
    group = groups_by_name(model)["conv1"]
    keep = torch.tensor([True, False, True, False, True])
    with mask_consumers(model, group, keep):
        at_consumers = model(images())
    hook = model.conv1.register_forward_hook(lambda _, __, out: out * keep.view(-1, 1, 1))
    at_convolution = model(images())
    hook.remove()
    assert (at_consumers - at_convolution).abs().max() > 1e-2


def test_mask_hides_what_is_not_finite():
    model = lively(Plain())
    group = groups_by_name(model)["conv1"]
    model.bn1.bias.data[2] = torch.inf
    with mask_consumers(model, group, torch.tensor([True, True, False, True, True])):
        assert model(images()).isfinite().all()
