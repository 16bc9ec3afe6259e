"""A network that is cut in effect only: it has the whole's shape and the cut network's outputs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shapray.network.group import Group


def silenced(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A copy whose consumers have zero weights where they read removed units.

    Args:
        groups: those of `removed` among them.
        removed: group -> units.
    """
    network = copy.deepcopy(model)
    with torch.no_grad():
        for name, channels in read_channels(groups, removed).items():
            consumer = network.get_submodule(name)
            assert isinstance(consumer, nn.Conv2d | nn.Linear)
            consumer.weight[:, ~channels] = 0
    return network


def read_channels(
    groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Of every consumer that loses input channels, which ones stay: name -> (n_channels,) bool."""
    stay: dict[str, Tensor] = {}
    for group in groups:
        gone = torch.tensor(list(removed.get(group.name, ())), dtype=torch.int64)
        if len(gone):
            for consumer in group.consumers:
                units = torch.tensor(consumer.unit_of_channel)
                before = stay.get(consumer.module, torch.ones(len(units), dtype=torch.bool))
                stay[consumer.module] = before & ~torch.isin(units, gone)
    return stay
