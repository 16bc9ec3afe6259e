"""What becomes of a class without the units that serve it most: is it hurt more than the others?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
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
    class_scores: pa.Table,
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
        scores, class_scores: ``scores.parquet``, ``class_scores.parquet``.
        n_classes: at most, those with most evaluation images among those that have scores.
        share: of all units, how many are removed; at least one is.
    Returns:
        CLASS_REMOVAL, classes ascending; empty with scores of fewer than two classes.
    """
    assert inputs.labels is not None
    units = [(group.name, unit) for group in inputs.groups for unit in range(group.n_units)]
    known, means = _by_class(class_scores, units)
    labels = _most_frequent(inputs.labels.tolist(), set(known), n_classes)
    if len(known) < 2 or not labels:
        return CLASS_REMOVAL.empty_table()
    n = max(1, round(share * len(units)))
    whole = _without(inputs, [])
    best = _largest(_column(scores, units), units, n)
    without_best = _without(inputs, best)
    rows = list[dict[str, Any]]()
    for label in labels:
        place = known.index(label)
        own = _largest(means[place] - np.delete(means, place, axis=0).mean(axis=0), units, n)
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
    """The column `mean` of a score table, in the order of `units`, all of which are there once."""
    place = _places(table, units)
    found = np.full(len(units), np.nan)
    found[place[place >= 0]] = table["mean"].to_numpy()[place >= 0]
    return found


def _by_class(class_scores: pa.Table, units: Units) -> tuple[list[int], np.ndarray]:
    """The labels, ascending, and their means: (n_labels, n_units)."""
    place = _places(class_scores, units)
    labels, row = np.unique(class_scores["label"].to_numpy(), return_inverse=True)
    found = np.full((len(labels), len(units)), np.nan)
    there = place >= 0
    found[row[there], place[there]] = class_scores["mean"].to_numpy()[there]
    return labels.tolist(), found


def _places(table: pa.Table, units: Units) -> np.ndarray:
    """Per row of a score table the place of its unit among `units`, -1 for one of another group."""
    first = {group: place for place, (group, unit) in enumerate(units) if unit == 0}
    names = table["group"].combine_chunks().dictionary_encode()
    firsts = np.array([first.get(name, -1) for name in names.dictionary.to_pylist()], dtype=int)
    start = firsts[names.indices.to_numpy()]
    return np.where(start < 0, -1, start + table["unit"].to_numpy())


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
