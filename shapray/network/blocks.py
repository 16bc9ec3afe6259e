"""Which units of a group are in which groups of the convolutions that have them.

A convolution in groups has equally many channels in each. So single channels can be cut, as long as
equally many go from each block: from what every such convolution has in one of its groups.
"""

from collections.abc import Iterable, Sequence

import numpy as np

InGroups = tuple[int, Sequence[int]]
"""Of a convolution how many groups it has, and the unit of each channel that it reads, or of each
that it puts out; -1 for none."""


def blocks(n_units: int, convolutions: Iterable[InGroups]) -> tuple[int, ...] | None:
    """Every unit's block; empty if any units may go.

    Args:
        convolutions: those in groups that have some of the units.
    Returns:
        None if there are no such blocks: a unit lies in two groups and not in all alike, others
        belong to no group, or a block has a single unit.
    """
    cells = np.zeros(n_units, dtype=np.int64)
    for n_groups, units in convolutions:
        found = _groups_of_units(n_units, n_groups, units)
        if found is None:
            return None
        # equally many of each cell are equally many of each group of either convolution
        cells = np.unique(cells * n_groups + found, return_inverse=True)[1]
    sizes = np.bincount(cells)
    if len(sizes) == 1:
        return ()
    return tuple(cells.tolist()) if len(set(sizes.tolist())) == 1 and sizes[0] > 1 else None


def _groups_of_units(n_units: int, n_groups: int, units: Sequence[int]) -> np.ndarray | None:
    """(n_units,): the group that each unit's channels are in, 0 if they are in all alike; None if
    they are in some."""
    of_channel = np.array(units)
    if of_channel.min() < 0:
        return None
    counts = np.zeros((n_units, n_groups), dtype=np.int64)
    np.add.at(counts, (of_channel, np.arange(len(units)) * n_groups // len(units)), 1)
    if (counts == counts[:, :1]).all():
        return np.zeros(n_units, dtype=np.int64)
    one_each = (counts > 0).sum(1) == 1
    alike = len(set(counts.sum(1).tolist())) == 1
    return counts.argmax(1) if one_each.all() and alike else None
