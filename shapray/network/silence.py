"""A network that is cut in effect only: it has the whole's shape and the cut network's outputs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

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
            consumer.weight[:, ~channels] = 0
    for name, channels in channels_left(groups, removed, STATISTICS).items():
        norm = network.get_submodule(name)
        if isinstance(norm, AlwaysKept):  # the network has been silenced before
            norm.kept = torch.as_tensor(norm.kept) & channels
        else:
            network.set_submodule(name, AlwaysKept(norm, channels))
    return network
