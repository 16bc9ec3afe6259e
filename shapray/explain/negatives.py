"""Units whose score is below 0: does the network really do better without each of them?

A negative score is a mean over coalitions. Whether the unit does harm where all others are there,
and on other images than those it was scored on, is measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from shapray.engine.network_game import NetworkSplit
from shapray.engine.score import Scorer
from shapray.explain.extremes import Extremes
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import Tally, joined, mean_interval, paired_difference, tally_of
from shapray.storage.explained import NEGATIVES

N_UNITS = 8  # of a group


def negatives(
    inputs: Inputs,
    scorer: Scorer,
    scores: pa.Table,
    extremes: Mapping[str, Extremes],
    n: int = N_UNITS,
) -> pa.Table:
    """The units of a mean Shapley value below 0, and what the loss and the accuracy change by if
    one of them alone goes.

    In float32, paired by image; what lies before a group's consumers is computed once an image.

    Args:
        inputs: network, groups, and the evaluation images.
        scorer: of the same groups, prepared where the network is.
        scores: ``scores.parquet``.
        extremes: group -> what the calibration images say of it.
        n: units of a group at most, the most negative ones.
    Returns:
        NEGATIVES, groups in their order, the most negative unit first.
    """
    rows = list[dict[str, Any]]()
    for group in inputs.groups:
        of_group = scores.filter(pc.equal(scores["group"], group.name))
        worst = of_group.filter(pc.less(of_group["mean"], 0)).sort_by("mean")[:n]
        if len(worst) == 0:
            continue
        units = worst["unit"].to_pylist()
        whole, without = _tallies(inputs, scorer.split(group.name, "float32"), units)
        rows += [
            {
                **{name: row[name] for name in ("group", "unit", "mean", "total_error")},
                **_where(extremes[group.name], row["unit"]),
                **_changes(whole, tally),
            }
            for row, tally in zip(worst.to_pylist(), without, strict=True)
        ]
    return pa.Table.from_pylist(rows, schema=NEGATIVES)


def _tallies(
    inputs: Inputs, split: NetworkSplit, units: Sequence[int]
) -> tuple[Tally, list[Tally]]:
    """Of the whole network, and without each of the units alone."""
    whole, without = list[Tally](), [list[Tally]() for _ in units]
    at_once = min(inputs.batch, split.images_at_once(1))
    for images, targets in zip(
        inputs.images.split(at_once), inputs.targets.split(at_once), strict=True
    ):
        game = split.game(images, targets, "neg_cross_entropy")
        logits = game.reference[:, 1]  # (n_images, n_classes)
        whole.append(tally_of(logits, targets))
        # Where the unit is a null player nothing changes.
        place, image = game.active[:, list(units)].T.nonzero(as_tuple=True)
        coalitions = torch.ones(len(place), split.group.n_units, dtype=torch.bool)
        coalitions[torch.arange(len(place)), torch.tensor(units)[place]] = False
        changed = game.outputs(image, coalitions)
        for number, tallies in enumerate(without):
            of_unit = logits.clone()
            of_unit[image[place == number]] = changed[place == number]
            tallies.append(tally_of(of_unit, targets))
    return joined(whole), [joined(tallies) for tallies in without]


def _where(extremes: Extremes, unit: int) -> dict[str, float | int | None]:
    """On which calibration images the unit's values are negative."""
    label = int(extremes.label[unit])
    return {
        "negative_share": _known(extremes.negative_share[unit]),
        "label": None if label < 0 else label,
        "label_share": _known(extremes.label_share[unit]),
    }


def _changes(whole: Tally, without: Tally) -> dict[str, float | int | None]:
    with np.errstate(invalid="ignore"):
        losses = without.losses - whole.losses
    low, high = mean_interval(losses) or (None, None)
    return {
        "loss_change": _known(losses.mean()),
        "loss_low": low,
        "loss_high": high,
        "top1_change": paired_difference(without, whole)[0],
        "n_images": whole.n,
    }


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
