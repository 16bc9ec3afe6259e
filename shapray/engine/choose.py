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
from shapray.network.proof import leak, sealed
from shapray.network.replay import Replay

CUT_IMAGES = 2  # on which masked and cut are compared

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
    few = images[:CUT_IMAGES]
    agreed = check_together(model, scorable, few, seed) is None
    proved = sealed(model, scorable, images[:1])
    network, whole = Replay(model, images[:1]), Replay(folded, images[:1])
    for n_done, group in enumerate(groups, 1):
        reason = group.reason if group in named else "not among score.groups"
        if reason is None and not agreed:
            reason = check_group(model, group, few, seed)
        elif reason is None and not proved:
            reason = leak(model, group, images[:1])
        if reason is None:
            try:
                split = NetworkSplit(folded, group, images[:1], device=images.device)
                reason = check_split(split, network, whole, seed)
                if reason is None:
                    tail_macs[group.name] = split.tail_macs
            except Exception:  # an operation that the tail cannot have; the job goes on
                reason = "what lies behind it does not run apart from the rest of the network"
        checked.append(replace(group, reason=reason))
        progress(n_done, len(groups))
    return tuple(checked), tail_macs


def check_split(split: NetworkSplit, network: Replay, folded: Replay, seed: int) -> str | None:
    """Whether the two halves of a network compute what the whole does; the reason if they do not.

    On a random coalition of half of the units, and on that of the others, by both ways into the
    tail. See `network.check.disagreement`.

    Args:
        split: in float32, of what was folded, on its device.
        network: itself, and an image.
        folded: and the same image.
    """
    with folded.until():
        game = split.game(folded.image, None, "neg_kl_divergence")
    order = torch.randperm(game.n_players, generator=torch.Generator().manual_seed(seed))
    joined = order[: (game.n_players + 1) // 2]
    coalitions = torch.zeros(2, game.n_players, dtype=torch.bool)
    coalitions[0, joined] = True
    coalitions[1] = ~coalitions[0]
    right = torch.cat([_masked(network, split.group, coalition) for coalition in coalitions])
    image = torch.zeros(2, dtype=torch.int64)
    found = {"masked": game.masked_outputs(image, coalitions)}
    if game.sums is not None:  # else these are the same
        kept = torch.zeros(1, len(joined) + 1, dtype=torch.bool)
        kept[:, -1] = True
        if split.parts is not None and split.parts.multiplied:
            found["multiplied"] = game.outputs(image[:1], coalitions[:1])
        found["summed"] = game.along(image[:1], joined[None], kept)
    for way, outputs in found.items():
        if difference := disagreement(outputs, right[: len(outputs)]):
            return f"the {way} tail and the network {difference}"
    return None


def _masked(network: Replay, group: Group, coalition: Tensor) -> Tensor:
    """What a network makes of its image with some of a group's units."""
    readers = (*group.consumers, *group.statistics)
    until = [network.model.get_submodule(reader.module) for reader in readers]
    masked = mask_consumers(network.model, group, coalition)
    with torch.inference_mode(), network.until(until), masked:
        return network.model(network.image.clone())  # it may change its input
