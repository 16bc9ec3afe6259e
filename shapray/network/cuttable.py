"""The form in which a network can be cut: itself, or its program."""

import contextlib

import torch
from torch import Tensor, nn

from shapray.network.check import disagreement
from shapray.network.consumers import mask_consumers
from shapray.network.find import find_groups, is_mixed
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.network.program import is_program, program
from shapray.network.surgery import prune_model

TRIES = 3  # cuts of all groups, each of other units


def cuttable(model: nn.Module, example: Tensor) -> tuple[nn.Module, list[Group]]:
    """A network that computes the same and can be cut, and its groups.

    That is the network itself wherever units can be taken from all of its groups at once. Where its
    forward is written for all channels, or takes means over them, it is a program (see `program`)
    that moves and counts them, with the same layers and ``state_dict``.

    Args:
        model: in eval mode.
        example: (1, C, H, W), on the model's device.
    Raises:
        NetworkError: see `find_groups`.
    """
    groups = find_groups(model, example)
    fits = _can_be_cut(model, groups, example)
    if fits and not any(is_mixed(group) for group in groups):
        return model, groups
    traced = program(model, example)
    if traced is None or not is_program(traced):
        return model, groups
    found = find_groups(traced, example)
    if fits and _n_scorable(found) <= _n_scorable(groups):
        return model, groups
    return traced, found


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
    thirds = {
        group.name: [
            removable(group, units.tolist())
            for units in torch.randperm(group.n_units, generator=random).tensor_split(TRIES)
        ]
        for group in groups
        if group.reason is None
    }
    return all(
        _agrees_without(model, groups, {n: t[i] for n, t in thirds.items()}, example)
        for i in range(TRIES)
    )


def _agrees_without(
    model: nn.Module, groups: list[Group], removed: dict[str, list[int]], example: Tensor
) -> bool:
    with contextlib.ExitStack() as stack, torch.no_grad():
        for group in groups:
            if group.name in removed:
                stays = torch.ones(group.n_units, dtype=torch.bool)
                stays[removed[group.name]] = False
                stack.enter_context(mask_consumers(model, group, stays))
        masked = model(example.clone())
    with torch.no_grad():
        try:
            pruned = prune_model(model, groups, removed)(example.clone())
        except Exception:  # of the user's forward, whose sizes no longer fit
            return False
    return pruned.shape == masked.shape and disagreement(pruned, masked) is None
