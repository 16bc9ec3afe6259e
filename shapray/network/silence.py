"""A network that is cut in effect only: it has the whole's shape and the cut network's outputs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shapray.network.group import CONSUMERS, STATISTICS, Group
from shapray.network.index_maps import channels_left
from shapray.network.statistics import AlwaysKept


def silenced(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A copy whose consumers have zero weights where they read removed units, and whose norms over
    channels leave those out.

    Args:
        groups: those of `removed` among them.
        removed: group -> units.
    """
    network = copy.deepcopy(model)
    with torch.no_grad():
        for name, channels in channels_left(groups, removed, CONSUMERS).items():
            consumer = network.get_submodule(name)
            assert isinstance(consumer, nn.Conv2d | nn.Linear)
            consumer.weight.copy_(without(consumer, channels))
    for name, channels in channels_left(groups, removed, STATISTICS).items():
        network.set_submodule(name, AlwaysKept(network.get_submodule(name), channels))
    return network


def without(layer: nn.Conv2d | nn.Linear, channels: Tensor) -> Tensor:
    """A layer's weight, zero for what it would read of channels that are gone.

    Args:
        channels: (n_channels,) bool, those that are left.
    """
    n_groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    stay = channels.to(layer.weight.device).view(n_groups, 1, -1)
    weight = layer.weight.unflatten(0, (n_groups, -1))
    stay = stay[(..., *[None] * (weight.ndim - 3))]
    return weight.masked_fill(~stay, 0).flatten(0, 1)
