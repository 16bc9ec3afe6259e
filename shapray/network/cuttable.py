"""The form in which a network can be cut: itself, or its program."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor, nn

from shapray.network.check import agree
from shapray.network.find import find_groups, is_mixed
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.network.program import is_program, program

TRIES = 3  # cuts of all groups, each of other units
MORE_TRIES = 6  # rounds of them where there are groups in blocks


def cuttable(
    model: nn.Module, example: Tensor, patterns: Sequence[str] = ("*",)
) -> tuple[nn.Module, list[Group]]:
    """A network that computes the same and can be cut, and its groups.

    That is the network itself wherever units can be taken from all of its groups at once. Where its
    forward is written for all channels, or takes means over them, it is a program (see `program`)
    that moves and counts them, with the same layers and ``state_dict``.

    Args:
        model: in eval mode.
        example: (1, C, H, W), on the model's device.
        patterns: glob patterns over the names of the groups that are to be cut.
    Raises:
        NetworkError: see `find_groups`.
    """
    groups = find_groups(model, example)
    wanted = _named(groups, patterns)
    fits = _can_be_cut(model, wanted, example)
    if fits and not any(is_mixed(group) for group in wanted):
        return model, groups
    traced = program(model, example)
    if traced is None or not is_program(traced):
        return model, groups
    found = find_groups(traced, example)
    if fits and _n_scorable(_named(found, patterns)) <= _n_scorable(wanted):
        return model, groups
    return traced, found


def _named(groups: list[Group], patterns: Sequence[str]) -> list[Group]:
    return [g for g in groups if any(fnmatchcase(g.name, pattern) for pattern in patterns)]


def _n_scorable(groups: list[Group]) -> int:
    return sum(group.n_units for group in groups if group.reason is None)


def as_program(model: nn.Module, example: Tensor) -> nn.Module:
    """The program that `cuttable` found, of a network in its first form.

    Raises:
        ValueError: there is none.
    """
    found = program(model, example)
    if found is None:
        raise ValueError("its forward can no longer be traced, as it was when the network was cut")
    return found


def _can_be_cut(model: nn.Module, groups: list[Group], example: Tensor) -> bool:
    """Whether the network without some units of every group is what it is with them masked: every
    unit goes once, as a forward that is written for all channels may by luck be right without
    some."""
    random = torch.Generator().manual_seed(0)
    scorable = [group for group in groups if group.reason is None]
    # where equally many of each block go, halves stay equal, and only the wrong order shows
    in_blocks = any(group.blocks for group in scorable)
    for number in range(MORE_TRIES if in_blocks else 1):
        parts = [(group, _parts(group, random, number > 0)) for group in scorable]
        for place in range(TRIES):
            if agree(model, [(g, removable(g, units[place])) for g, units in parts], example):
                return False
    return True


def _parts(group: Group, random: torch.Generator, from_all: bool) -> list[list[int]]:
    """A group's units in as many parts as there are tries, of unequal size: a forward may be right
    as long as its halves stay equal.

    Args:
        from_all: no part is empty, where there are enough; then sizes differ less.
    """
    n_steps = group.n_units // group.step
    if from_all:
        bounds = torch.randperm(n_steps - 1, generator=random)[: TRIES - 1] + 1
    else:
        bounds = torch.randint(n_steps + 1, (TRIES - 1,), generator=random)
    order = torch.randperm(group.n_units, generator=random).tolist()
    going = removable(group, order)
    every = going + [unit for unit in order if unit not in set(going)]
    ends = [0, *(bounds.sort().values * group.step).tolist(), *[group.n_units] * TRIES]
    return [every[first:last] for first, last in pairwise(ends[: TRIES + 1])]
