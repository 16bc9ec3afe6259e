"""What was measured of the cuts, as the tables and reports of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shapray.pruning.cuts import Cut
from shapray.pruning.evaluate import Tally
from shapray.storage.schemas import CURVE


@dataclass(frozen=True)
class Measurement:
    """The network of one cut on all evaluation images."""

    cut: Cut
    tally: Tally
    parameters: int
    multiply_adds: int

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


def measurements_json(measurements: Sequence[Measurement], ratio: float) -> dict[str, Any]:
    """The content of ``prune/metrics.json``: the full network, the plan's, the random ones'."""
    at_ratio = [found for found in measurements if found.cut.ratio == ratio]
    [before] = [found for found in measurements if found.cut.criterion is None]
    [after] = [found for found in at_ratio if found.cut.criterion == "shapley"]
    return {
        "before": before.numbers() | {"per_class": before.tally.per_class},
        "after": after.numbers() | {"per_class": after.tally.per_class},
        "random": [
            {"seed": found.cut.seed} | found.numbers()
            for found in at_ratio
            if found.cut.criterion == "random"
        ],
    }


def curve_table(measurements: Sequence[Measurement], n_units: int) -> pa.Table:
    """The rows of ``prune/curve.parquet``, by ratio; `n_units` is the total of all groups."""
    rows = [
        {
            "criterion": found.cut.criterion,
            "ratio": found.cut.ratio,
            "removed_fraction": found.cut.n_removed / n_units,
            "seed": found.cut.seed,
        }
        | found.numbers()
        for found in sorted(measurements, key=lambda found: found.cut.ratio)
        if found.cut.criterion is not None
    ]
    return pa.Table.from_pylist(rows, schema=CURVE)
