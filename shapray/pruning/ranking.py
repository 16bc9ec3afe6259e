"""Scores to a plan: which units go. Arrays in, indices out; knows no network."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from shapray.config import Prune


def plan_removal(scores: Mapping[str, np.ndarray], prune: Prune) -> dict[str, list[int]]:
    """The units with the lowest scores, per group, ascending.

    Scope "group" removes floor(ratio * n_units) units of every group; scope "global" ranks all
    units together and removes floor(ratio * total). Equal scores go by the order of the groups,
    then of the units. `min_units` stay in every group (a global plan then takes the next in rank
    elsewhere). `round_to` makes what is left of a group a multiple of it, by removing fewer units:
    a plan then removes fewer in total than `ratio` says. Groups smaller than `round_to` are not
    rounded.

    Args:
        scores: group -> (n_units,); the order of the groups is the mapping's.
    Returns:
        Every group of `scores`, with an empty list where nothing goes.
    Raises:
        ValueError: a score is not finite (what was not measured cannot be ranked).
    """
    for group, values in scores.items():
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise ValueError(
                f"group '{group}': {len(wrong)} of {len(values)} scores are not finite, the first "
                f"is that of unit {wrong[0]} ({values[wrong[0]]})"
            )
    ranked = {group: np.argsort(values, kind="stable") for group, values in scores.items()}
    n_units = {group: len(values) for group, values in scores.items()}
    if prune.scope == "group":
        counts = {
            group: min(_share(prune.ratio, n), max(n - prune.min_units, 0))
            for group, n in n_units.items()
        }
    else:
        counts = _global_counts(scores, prune)
    return {
        group: sorted(ranked[group][: _rounded(counts[group], n, prune.round_to)].tolist())
        for group, n in n_units.items()
    }


def random_removal(
    n_units: Mapping[str, int], planned: Mapping[str, Sequence[int]], prune: Prune, seed: int
) -> dict[str, list[int]]:
    """The baseline of a plan: as many units, drawn at random under the same constraints.

    Scope "group" draws as many of each group as the plan removes. Scope "global" draws as many in
    total: all units are walked in random order, and one is left in if its group is already down to
    `min_units`. With `round_to`, units go in the blocks that keep a group's rest a multiple of it;
    where groups are of odd sizes, the total can then fall short of the plan's by less than
    `round_to`.

    Args:
        n_units: group -> number of units.
        planned: the plan to imitate; only its counts are read.
    """
    rng = np.random.default_rng(seed)
    if prune.scope == "group":
        counts = {group: len(planned[group]) for group in n_units}
    else:
        budget = sum(len(planned[group]) for group in n_units)
        counts = _random_counts(n_units, budget, prune, rng)
    return {
        group: sorted(rng.permutation(n)[: counts[group]].tolist()) for group, n in n_units.items()
    }


def _share(ratio: float, n_units: int) -> int:
    """floor(ratio * n_units) of the decimal that was meant: 0.29 * 100 is 29."""
    return math.floor(ratio * n_units + 1e-9)


def _rounded(count: int, n_units: int, round_to: int) -> int:
    """The most units, up to `count`, that leave a multiple of `round_to`; else none."""
    if n_units < round_to:
        return count
    left = math.ceil((n_units - count) / round_to) * round_to
    return max(n_units - left, 0)


def _global_counts(scores: Mapping[str, np.ndarray], prune: Prune) -> dict[str, int]:
    owners = [group for group, values in scores.items() for _ in values]
    pooled = np.concatenate(list(scores.values())) if scores else np.empty(0)
    budget = _share(prune.ratio, len(pooled))
    counts = dict.fromkeys(scores, 0)
    for place in np.argsort(pooled, kind="stable"):
        if budget == 0:
            break
        group = owners[place]
        if len(scores[group]) - counts[group] > prune.min_units:
            counts[group] += 1
            budget -= 1
    return counts


def _random_counts(
    n_units: Mapping[str, int], budget: int, prune: Prune, rng: np.random.Generator
) -> dict[str, int]:
    # One ticket per block, so that a group is drawn in proportion to its units.
    tickets = [group for group, n in n_units.items() for _ in _blocks(n, prune.round_to)]
    blocks = {group: _blocks(n, prune.round_to) for group, n in n_units.items()}
    counts = dict.fromkeys(n_units, 0)
    for place in rng.permutation(len(tickets)):
        group = tickets[place]
        size = blocks[group][0]
        if size <= budget and n_units[group] - counts[group] - size >= prune.min_units:
            blocks[group].pop(0)
            counts[group] += size
            budget -= size
    return counts


def _blocks(n_units: int, round_to: int) -> list[int]:
    """Sizes in which a group's units go: down to a multiple of `round_to`, then by `round_to`."""
    if n_units < round_to:
        return [1] * n_units
    odd = n_units % round_to
    return [odd] * (odd > 0) + [round_to] * (n_units // round_to)
