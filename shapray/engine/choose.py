"""Which groups can be scored: chosen by name, and checked that masked, cut and split agree."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.errors import NetworkError
from shapray.network.check import check_group, check_together, disagreement
from shapray.network.consumers import mask_consumers
from shapray.network.group import Group
from shapray.network.proof import leak

SPLIT_IMAGES = 2  # on which a tail is compared with the network

Progress = Callable[[int, int], None]
"""Told, after each group, how many are done and how many there are."""


def choose_groups(
    model: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    patterns: Sequence[str],
    seed: int,
    progress: Progress = lambda done, total: None,
) -> tuple[tuple[Group, ...], dict[str, int]]:
    """The same as `checked_groups`, of which some are to be scored.

    Raises:
        NetworkError: no group is left to score.
    """
    checked, tail_macs = checked_groups(model, groups, images, patterns, seed, progress)
    if not tail_macs:
        listed = "\n".join(f"  {group.name}: {group.reason}" for group in checked)
        raise NetworkError(
            f"{list(patterns)} leaves no group to score; the network's groups:\n"
            f"{listed or '  (none)'}"
        )
    return checked, tail_macs


def checked_groups(
    model: nn.Module,
    groups: Sequence[Group],
    images: Tensor,
    patterns: Sequence[str],
    seed: int,
    progress: Progress = lambda done, total: None,
) -> tuple[tuple[Group, ...], dict[str, int]]:
    """Choose the groups to score and check each one.

    Args:
        model: in eval mode, float32, on the device of `images`.
        groups: all of the network, from `find_groups`.
        images: a few, (n_images, channels, height, width).
        patterns: glob patterns over the names of those to score.
        seed: of the coalitions that are checked.
    Returns:
        all groups, those that are not to be scored with their reason; and by name, of those to
        score, the multiply-adds of a coalition of an image.
    """
    checked, tail_macs = [], {}
    folded = fold(model, images[:1])
    named = [
        group for group in groups if any(fnmatchcase(group.name, pattern) for pattern in patterns)
    ]
    scorable = [group for group in named if group.reason is None]
    together = check_together(model, scorable, images, seed) is None
    for n_done, group in enumerate(groups, 1):
        reason = group.reason if group in named else "not among score.groups"
        if reason is None:
            if together:
                reason = leak(model, group, images[:1])
            else:
                reason = check_group(model, group, images, seed)
        if reason is None:
            try:
                split = NetworkSplit(folded, group, images[:1])
                reason = check_split(split, model, images[:SPLIT_IMAGES], seed)
                if reason is None:
                    tail_macs[group.name] = split.tail_macs
            except Exception:  # an operation that the tail cannot have; the job goes on
                reason = "what lies behind it does not run apart from the rest of the network"
        checked.append(replace(group, reason=reason))
        progress(n_done, len(groups))
    return tuple(checked), tail_macs


def check_split(split: NetworkSplit, model: nn.Module, images: Tensor, seed: int) -> str | None:
    """Whether the two halves of a network compute what the whole does; the reason if they do not.

    On a random coalition of half of the units, by both ways into the tail. See
    `network.check.disagreement`.

    Args:
        split: in float32.
        model: the network itself, on the device of `images`.
        images: (n_images, channels, height, width).
    """
    game = split.game(images, None, "neg_kl_divergence")
    order = torch.randperm(game.n_players, generator=torch.Generator().manual_seed(seed))
    joined = order[: (game.n_players + 1) // 2]
    coalition = torch.zeros(game.n_players, dtype=torch.bool)
    coalition[joined] = True
    with torch.inference_mode(), mask_consumers(model, split.group, coalition):
        right = model(images.clone())  # it may change its input
    kept = torch.zeros(len(images), len(joined) + 1, dtype=torch.bool)
    kept[:, -1] = True
    every = torch.arange(len(images))
    orders = joined.expand(len(images), -1)
    found = {
        "masked": game.masked_outputs(every, coalition.expand(len(images), -1)),
        "multiplied": game.outputs(every, coalition.expand(len(images), -1)),
        "summed": game.along(every, orders, kept),
        # an image by itself goes another way into the tail
        "lone image's summed": game.along(every[:1], orders[:1], kept[:1]),
    }
    for way, outputs in found.items():
        if difference := disagreement(outputs, right[: len(outputs)]):
            return f"the {way} tail and the network {difference}"
    return None
