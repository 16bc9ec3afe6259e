"""Scores to what a network is cut by, in this process: its ranking, and what each group costs."""

import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from shapray.config import Prune
from shapray.engine.trace import fold
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.pruning.chooser import Chooser, Losses
from shapray.pruning.criteria import MEMORY, criterion
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import CURVE_IMAGES, loss_curves, shuffled


def ranked(
    chooser: Chooser,
    table: pa.Table,
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    memory: int = MEMORY,
) -> tuple[Ranking, Losses]:
    """The order of a network's units, and their losses where the allocation is measured.

    Args:
        chooser: asks for one ranking; its whole network is `network`, with what is gone.
        table: ``scores.parquet`` of the network.
        network: in eval mode.
        images, labels: (n, channels, height, width) float32 and (n,) int64, that it was scored on.
        memory: bytes that a criterion may take, with the process.
    Raises:
        ValueError: the network lacks a group, or a criterion says nothing of it.
    """
    asked = chooser.prune
    names = list(dict.fromkeys(table["group"].to_pylist()))
    scored = named(find_groups(network, images[:1]), names)
    table = _with_criteria(table, network, scored, images, labels, asked, memory)
    per_unit = {name: chooser.sizes.macs_of_a_unit(name, chooser.gone) for name in names}
    [ranking] = rankings(table, asked, per_unit)
    losses, repaired = {}, "least_squares" in asked.repair
    some = images[shuffled(len(images))[:CURVE_IMAGES]]
    folded = fold(network, images[:1])
    for group in scored if asked.allocation == "measured" else ():
        order = {ranking.name: ranking.orders[group.name]}
        of_group = loss_curves(network, group, order, some, repaired, folded)
        losses[group.name] = of_group[ranking.name]
    return ranking, {ranking.name: losses}


def named(groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """The groups of some names; raises ValueError for one that is not there."""
    by_name = {group.name: group for group in groups}
    lost = [name for name in names if name not in by_name]
    if lost:
        raise ValueError(f"model: it has no group '{lost[0]}', which the scores are of")
    return [by_name[name] for name in names]


def _with_criteria(
    table: pa.Table,
    network: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    labels: Tensor | None,
    asked: Prune,
    memory: int,
) -> pa.Table:
    for name in needed_criteria(asked):
        if name not in table.column_names:
            try:
                of_groups = criterion(name, network, groups, images, labels, memory=memory)
            except ValueError as error:
                if name not in asked.rank_by:
                    warnings.warn(f"left out: {error}", stacklevel=2)  # auto does without
                    continue
                raise ValueError(f"rank_by: {error}") from error
            values = np.concatenate([of_groups[group.name] for group in groups])
            table = table.append_column(name, pa.array(values, pa.float64()))
    return table
