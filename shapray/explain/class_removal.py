"""What becomes of a class without the units that serve it most: is it hurt more than the others?"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from shapray.network.consumers import mask_consumers
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import Tally, joined, tally, wilson_interval
from shapray.storage.explained import CLASS_REMOVAL

N_CLASSES = 10
SHARE = 0.05  # of all units, that are removed

Units = list[tuple[str, int]]  # group, unit


def class_removal(
    inputs: Inputs,
    scores: pa.Table,
    class_scores: Callable[[str], pa.Table],
    n_classes: int = N_CLASSES,
    share: float = SHARE,
) -> pa.Table:
    """Accuracy on a class and on the others before and after units are removed, of all groups at
    once and without repair: those that serve the class most; as many of every group at random; and
    as many in all of largest score, whatever the class.

    A unit serves a class by its mean Shapley value on the class's images less the mean of its means
    on the other classes'. A difference and no ratio: means may be 0 and of either sign. Of every
    group at least one unit stays.

    Args:
        inputs: network, groups, and the evaluation images with their labels.
        scores: ``scores.parquet``.
        class_scores: gives a group's rows of ``class_scores.parquet``, with unit, label and mean;
            of a thousand classes those of all groups would not fit.
        n_classes: at most, those with most evaluation images among those that have scores.
        share: of all units, how many are removed; at least one is.
    Returns:
        CLASS_REMOVAL, classes ascending; empty with scores of fewer than two classes.
    """
    assert inputs.labels is not None
    units = [(group.name, unit) for group in inputs.groups for unit in range(group.n_units)]
    known = {
        label
        for group in inputs.groups
        for label in pc.unique(class_scores(group.name)["label"]).to_pylist()
    }
    labels = _most_frequent(inputs.labels.tolist(), known, n_classes)
    if len(known) < 2 or not labels:
        return CLASS_REMOVAL.empty_table()
    n = max(1, round(share * len(units)))
    served = np.concatenate(
        [_served(class_scores(group.name), group.n_units, labels) for group in inputs.groups],
        axis=1,
    )
    whole = _without(inputs, [])
    best = _largest(_column(scores, units), units, n)
    without_best = _without(inputs, best)
    rows = list[dict[str, Any]]()
    for label, worth in zip(labels, served, strict=True):
        own = _largest(worth, units, n)
        by_chance = _at_random(own, units, seed=(inputs.seed, label))
        for removed, gone, left in (
            ("class", own, _without(inputs, own)),
            ("random", by_chance, _without(inputs, by_chance)),
            ("score", best, without_best),
        ):
            names = [f"{group}/{unit}" for group, unit in gone]
            row = {"label": label, "removed": removed, "n_units": len(gone), "units": names}
            rows.append(row | _accuracies(whole, left, label))
    return pa.Table.from_pylist(rows, schema=CLASS_REMOVAL)


def _column(table: pa.Table, units: Units) -> np.ndarray:
    """The column `mean` of ``scores.parquet``, in the order of `units`; NaN where it lacks one."""
    rows = zip(*(table[name].to_pylist() for name in ("group", "unit", "mean")), strict=True)
    means = {(group, unit): mean for group, unit, mean in rows}
    return np.array([means.get(unit, np.nan) for unit in units])


def _served(table: pa.Table, n_units: int, labels: Sequence[int]) -> np.ndarray:
    """(n_labels, n_units): how far a unit of the group serves each of `labels`, by its rows of
    ``class_scores.parquet``; NaN without scores of that class and of another one."""
    found = np.full((len(labels), n_units), np.nan)
    known, row = np.unique(table["label"].to_numpy(), return_inverse=True)
    means = np.full((len(known), n_units), np.nan)
    means[row, table["unit"].to_numpy()] = table["mean"].to_numpy()
    for place, label in enumerate(labels):
        own = known == label
        if own.any() and not own.all():
            found[place] = means[own][0] - means[~own].mean(axis=0)
    return found


def _most_frequent(labels: Sequence[int], known: set[int], n: int) -> list[int]:
    """Up to `n` of the known labels, ascending; of equally frequent ones the smaller."""
    counts = Counter(label for label in labels if label in known)
    return sorted(sorted(counts, key=lambda label: (-counts[label], label))[:n])


def _largest(worth: np.ndarray, units: Units, n: int) -> Units:
    """Up to `n` units, the one of largest worth first; one of each group stays."""
    left = Counter(group for group, _ in units)
    found: Units = []
    for place in np.argsort(-worth, kind="stable").tolist():
        group, unit = units[place]
        if left[group] > 1 and len(found) < n:
            found.append((group, unit))
            left[group] -= 1
    return found


def _at_random(like: Units, units: Units, seed: tuple[int, int]) -> Units:
    """As many units of every group."""
    random = np.random.default_rng(seed)
    counts = Counter(group for group, _ in like)
    return [
        (group, unit)
        for group, n_units in Counter(group for group, _ in units).items()
        for unit in sorted(random.choice(n_units, counts[group], replace=False).tolist())
    ]


def _without(inputs: Inputs, units: Units) -> Tally:
    """How the network does without some units: all that reads them reads zeros, as after a cut."""
    kept = {group.name: torch.ones(group.n_units, dtype=torch.bool) for group in inputs.groups}
    for name, unit in units:
        kept[name][unit] = False

    def tallies() -> Iterator[Tally]:
        targets = inputs.targets.split(inputs.batch)
        for images, of_images in zip(inputs.batches(), targets, strict=True):
            yield tally(inputs.model, images, of_images, inputs.device)

    with ExitStack() as stack:
        for group in inputs.groups:
            mask = kept[group.name].to(inputs.device)
            if not mask.all():
                stack.enter_context(mask_consumers(inputs.model, group, mask))
        return joined(tallies())


def _accuracies(before: Tally, after: Tally, label: int) -> dict[str, float | int | None]:
    own = before.labels == label
    return {
        "n_images": int(own.sum()),
        "n_others": int((~own).sum()),
        **_of_some("top1", before.hits[own], after.hits[own]),
        **_of_some("others", before.hits[~own], after.hits[~own]),
    }


def _of_some(name: str, before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """Shares of hits, and the interval of the latter; null of no images."""
    keys = (f"{name}_before", f"{name}_after", f"{name}_low", f"{name}_high")
    if len(after) == 0:
        return dict.fromkeys(keys)
    interval = wilson_interval(int(after.sum()), len(after))
    return dict(zip(keys, (float(before.mean()), float(after.mean()), *interval), strict=True))
