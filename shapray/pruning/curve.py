"""What was measured of the cuts, as the tables and reports of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shapray.pruning.cuts import Network
from shapray.pruning.evaluate import Tally
from shapray.storage.schemas import CURVE


@dataclass(frozen=True)
class Measurement:
    """One network on all evaluation images."""

    network: Network
    tally: Tally
    parameters: int
    multiply_adds: int

    def numbers(self) -> dict[str, Any]:
        return {
            "top1": self.tally.top1,
            "loss": self.tally.loss,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "n_images": self.tally.n,
            "n_removed": self.network.n_removed,
        }


def metrics_json(measurements: Sequence[Measurement], ratio: float) -> dict[str, Any]:
    """The content of ``prune/metrics.json``: the full network, the plan's, the random ones'."""
    at_ratio = [found for found in measurements if found.network.ratio == ratio]
    [before] = [found for found in measurements if found.network.criterion is None]
    [after] = [found for found in at_ratio if found.network.criterion == "shapley"]
    return {
        "before": before.numbers(),
        "after": after.numbers(),
        "random": [
            {"seed": found.network.seed} | found.numbers()
            for found in at_ratio
            if found.network.criterion == "random"
        ],
    }


def curve_table(measurements: Sequence[Measurement], n_units: int) -> pa.Table:
    """The rows of ``prune/curve.parquet``, by ratio; `n_units` is the total of all groups."""
    rows = [
        {
            "criterion": found.network.criterion,
            "ratio": found.network.ratio,
            "removed_fraction": found.network.n_removed / n_units,
            "seed": found.network.seed,
        }
        | found.numbers()
        for found in sorted(measurements, key=lambda found: found.network.ratio)
        if found.network.criterion is not None
    ]
    return pa.Table.from_pylist(rows, schema=CURVE)
