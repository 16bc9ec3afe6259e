"""What was measured of the cuts, as the tables and reports of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shapray.config import Prune
from shapray.pruning.chooser import Losses
from shapray.pruning.cuts import WHOLE, Compared, Cut
from shapray.pruning.evaluate import Tally, paired_difference
from shapray.pruning.latency import Latency
from shapray.pruning.ranking import Ranking
from shapray.storage.schemas import CURVE, LOSSES


@dataclass(frozen=True)
class Measurement:
    """The network of one cut on all evaluation images."""

    cut: Cut
    tally: Tally
    parameters: int
    multiply_adds: int
    file_bytes: int

    def numbers(self) -> dict[str, Any]:
        """For tables and JSON: None (null) where a number is not finite or does not exist."""
        tally = self.tally
        top1_low, top1_high = tally.top1_interval
        loss_low, loss_high = tally.loss_interval or (None, None)
        return {
            "top1": tally.top1,
            "top1_low": top1_low,
            "top1_high": top1_high,
            "top5": tally.top5,
            "loss": tally.loss if math.isfinite(tally.loss) else None,
            "loss_low": loss_low,
            "loss_high": loss_high,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "n_images": tally.n,
            "n_removed": self.cut.n_removed,
        }


def measurements_json(
    measurements: Sequence[Measurement],
    compared: Compared,
    prune: Prune,
    timed: Mapping[str, Sequence[Latency]],
) -> dict[str, Any]:
    """The content of ``prune/metrics.json``: the whole network, the job's own cut before and after
    repair, and its rivals of the same size.

    Args:
        timed: "whole" and "after", a latency per batch size; a repair changes none.
    """
    by_name = {found.cut.name: found for found in measurements}
    before, cut, after = (by_name[found.name] for found in (WHOLE, compared.cut, compared.kept))
    rivals = [
        found
        for found in measurements
        if found.cut.size == after.cut.size and found.cut not in (compared.cut, compared.kept)
    ]
    key, value = prune.target
    return {
        "target": {key: value},
        "criterion": after.cut.criterion,
        "allocation": prune.allocation,
        "repair": list(prune.repair),
        "rounds": after.cut.rounds,
        **{
            name: found.numbers()
            | {
                "per_class": found.tally.per_class,
                "file_bytes": found.file_bytes,
                "latency": [of.numbers() for of in latencies],
            }
            for name, found, latencies in (
                ("before", before, timed["whole"]),
                ("cut", cut, timed["after"]),
                ("after", after, timed["after"]),
            )
        },
        "random": [
            {"seed": found.cut.seed} | found.numbers()
            for found in rivals
            if found.cut.criterion == "random"
        ],
        "criteria": [
            {"criterion": found.cut.criterion, "rounds": found.cut.rounds}
            | found.numbers()
            | {"behind": _interval(paired_difference(after.tally, found.tally))}
            for found in rivals
            if found.cut.criterion != "random"
        ],
    }


def _interval(found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("difference", "low", "high"), found))


def curve_table(measurements: Sequence[Measurement], n_units: int, key: str) -> pa.Table:
    """The rows of ``prune/curve.parquet``, the largest network first.

    Args:
        n_units: of all groups together.
        key: what the job says its sizes in; `ratio` is the one asked for, if it is that.
    """
    rows = [
        {
            "criterion": found.cut.criterion or "whole",
            "repair": "+".join(found.cut.repair) or "none",
            "size": found.cut.size,
            "ratio": (found.cut.size or 0.0) if key == "ratio" else found.cut.n_removed / n_units,
            "removed_fraction": found.cut.n_removed / n_units,
            "seed": found.cut.seed,
            "rounds": found.cut.rounds,
        }
        | found.numbers()
        for found in sorted(measurements, key=lambda found: -found.multiply_adds)
    ]
    return pa.Table.from_pylist(rows, schema=CURVE)


def losses_table(
    ranked: Sequence[Ranking], losses: Losses, points: Mapping[str, Sequence[int]]
) -> pa.Table:
    """The rows of ``prune/group_losses.parquet``, of the groups whose losses are known.

    Args:
        points: group -> how many of its units go at each point of its curve.
    """
    rows = [
        {
            "criterion": ranking.criterion,
            "seed": ranking.seed,
            "group": group,
            "n_removed": count,
            "loss": loss,
        }
        for ranking in ranked
        for group in ranking.scores
        if group in losses[ranking.name]
        for count, loss in zip(points[group], losses[ranking.name][group], strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=LOSSES)
