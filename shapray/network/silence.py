"""A network that is cut in effect only: it has the whole's shape and the cut network's outputs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shapray.network.group import CONSUMERS, STATISTICS, Group
from shapray.network.index_maps import channels_left
from shapray.network.layers import Layer, dimensions, rows
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
            assert isinstance(consumer, Layer)
            consumer.weight.copy_(without(consumer, channels))
    for name, channels in channels_left(groups, removed, STATISTICS).items():
        norm = network.get_submodule(name)
        if isinstance(norm, AlwaysKept):  # the network has been silenced before
            norm.kept = torch.as_tensor(norm.kept) & channels
        else:
            network.set_submodule(name, AlwaysKept(norm, channels))
    return network


def without(layer: Layer, channels: Tensor) -> Tensor:
    """A layer's weight, zero for what it would read of channels that are gone.

    Args:
        channels: (n_channels,) bool, those that are left.
    """
    weight = rows(layer)
    n_groups = getattr(layer, "groups", 1)
    of_groups = channels.to(weight.device).view(n_groups, 1, -1)
    reads = of_groups.expand(-1, len(weight) // n_groups, -1).flatten(0, 1)  # (outputs, inputs)
    left = weight.masked_fill(~reads[(..., *[None] * (weight.ndim - 2))], 0)
    return left.transpose(*dimensions(layer)) if dimensions(layer) == (1, 0) else left
