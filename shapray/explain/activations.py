"""How large a unit's activations are where they are read, over all images and class by class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shapray.network.consumers import Reader, intercept
from shapray.network.group import Channels, Group
from shapray.pruning.criteria.inputs import Inputs


@dataclass(frozen=True)
class Activations:
    """Mean absolute activations of a group's units.

    Attributes:
        overall: (n_units,), over all images.
        labels: (n_labels,) int64, ascending; empty where the images have none.
        by_label: (n_labels, n_units), over each label's images.
    """

    overall: np.ndarray
    labels: np.ndarray
    by_label: np.ndarray


def activations(inputs: Inputs) -> dict[str, Activations]:
    """Mean absolute activation of every unit as its consumers read it, in one pass over the images.

    For an image it is the mean over the unit's channels and positions, then over all that read it:
    every consumer, and one that is called several times as often. A unit that nobody reads has 0.

    Args:
        inputs: network, groups and images; the labels may be None.
    Returns:
        group's name -> its units' activations, sums in float64.
    """
    n_images = len(inputs.images)
    labels = np.zeros(n_images, dtype=np.int64)
    names = np.zeros(0, dtype=np.int64)
    if inputs.labels is not None:
        names, labels = np.unique(inputs.labels.cpu().numpy(), return_inverse=True)
    n_rows = max(1, len(names))
    counts = np.bincount(labels, minlength=n_rows)
    watches = {group.name: _Watch(group) for group in inputs.groups}
    totals = {group.name: np.zeros((n_rows, group.n_units)) for group in inputs.groups}
    readers = [(c, watches[group.name].of(c)) for group in inputs.groups for c in group.consumers]
    first = 0
    with intercept(inputs.model, readers), torch.inference_mode():
        for images in inputs.batches():
            inputs.model(images)
            here = labels[first : first + len(images)]
            for group, watch in watches.items():
                np.add.at(totals[group], here, watch.taken())
            first += len(images)
    return {
        group: Activations(
            total.sum(axis=0) / n_images, names, (total / counts[:, None])[: len(names)]
        )
        for group, total in totals.items()
    }


class _Watch:
    """Adds up what is read of each unit of a group in one pass of the network."""

    def __init__(self, group: Group) -> None:
        self.n_units = group.n_units
        self.sums: list[Tensor] = []  # per reading, (n_images, n_units), means over positions
        self.read = torch.zeros(group.n_units, dtype=torch.float64)  # how often each unit was

    def of(self, consumer: Channels) -> Reader:
        units = torch.tensor(consumer.unit_of_channel)
        of_unit = units >= 0
        n_channels = torch.bincount(units[of_unit], minlength=self.n_units).double()

        def look(read: Tensor, channel: int) -> Tensor:
            others = [d for d in range(1, read.ndim) if d != channel]
            size = read.abs()
            size = size.mean(others, dtype=torch.float64) if others else size.double()
            size = size.cpu()  # (n_images, n_channels)
            sums = torch.zeros(len(read), self.n_units, dtype=torch.float64)
            sums.index_add_(1, units[of_unit], size[:, of_unit])
            self.sums.append(sums / n_channels.clamp(min=1))
            self.read += n_channels > 0
            return read

        return look

    def taken(self) -> np.ndarray:
        """(n_images, n_units) of the pass, which is over."""
        mean = torch.stack(self.sums).sum(0) / self.read.clamp(min=1)
        self.sums, self.read = [], torch.zeros_like(self.read)
        return mean.numpy()
