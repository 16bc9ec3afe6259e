"""How often a unit is zero where it is read."""

import numpy as np
import torch
from torch import Tensor

from shapray.network.consumers import intercept
from shapray.network.group import Channels, Group
from shapray.pruning.criteria.inputs import Inputs


def apoz(inputs: Inputs) -> dict[str, np.ndarray]:
    """Share of positions at which a consumer reads the unit as something else than zero, over all
    images and averaged over the consumers that read it: one minus the average percentage of zeros.

    Behind an activation that is seldom exactly zero, a GELU or none, all units come out alike.

    Source: Hu et al. 2016, "Network Trimming".
    """
    watches = {
        group.name: [_Watch(group, reader) for reader in group.consumers] for group in inputs.groups
    }
    readers = [(watch.consumer, watch.look) for group in watches.values() for watch in group]
    with intercept(inputs.model, readers), torch.inference_mode():
        for images in inputs.batches():
            inputs.model(images)
    return {group: _average(of_group) for group, of_group in watches.items()}


class _Watch:
    """Counts what one consumer reads of each unit."""

    def __init__(self, group: Group, consumer: Channels) -> None:
        self.consumer = consumer
        self.units = torch.tensor(consumer.unit_of_channel)
        self.nonzero = torch.zeros(group.n_units, dtype=torch.float64)
        self.positions = torch.zeros(group.n_units, dtype=torch.float64)

    def look(self, read: Tensor, channel: int) -> Tensor:
        """A `Reader` that changes nothing."""
        others = [d for d in range(read.ndim) if d != channel]
        nonzero = (read != 0).sum(others).double().cpu()  # (n_channels,)
        positions = torch.full_like(nonzero, read.numel() // len(nonzero))
        of_unit = self.units >= 0
        self.nonzero.index_add_(0, self.units[of_unit], nonzero[of_unit])
        self.positions.index_add_(0, self.units[of_unit], positions[of_unit])
        return read


def _average(watches: list[_Watch]) -> np.ndarray:
    """A unit that nobody reads has 0."""
    shares = torch.stack([watch.nonzero / watch.positions.clamp(min=1) for watch in watches])
    n_readers = torch.stack([watch.positions > 0 for watch in watches]).sum(0)
    return (shares.sum(0) / n_readers.clamp(min=1)).numpy()
