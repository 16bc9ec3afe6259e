"""Scores to the networks that are compared: the plan, as many units at random, and the curve."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shapray.config import Prune
from shapray.evaluate import Tally
from shapray.ranking import plan_removal, random_removal
from shapray.store import CURVE
from shapray.worker import EvaluateTask, Evaluation

EVALUATE_IMAGES = 1024  # per task


@dataclass(frozen=True)
class Network:
    """The job's network without some of its units."""

    name: str
    criterion: str | None  # "shapley" or "random"; None: nothing was removed
    ratio: float
    seed: int | None
    removed: Mapping[str, Sequence[int]]  # group -> units

    @property
    def n_removed(self) -> int:
        return sum(len(units) for units in self.removed.values())


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


def ranking_scores(scores: pa.Table, rank_by: str) -> dict[str, np.ndarray]:
    """``scores.parquet`` -> group -> (n_units,) float64, in the table's order."""
    groups = np.array(scores["group"].to_pylist(), dtype=object)
    values = scores[rank_by].to_numpy()
    return {group: values[groups == group] for group in dict.fromkeys(groups)}


def networks(scores: Mapping[str, np.ndarray], prune: Prune) -> list[Network]:
    """The full network, then for every ratio the plan and its random counterparts.

    The job's own ratio comes first; the others are those of ``prune.curve``, ascending.
    """
    n_units = {group: len(values) for group, values in scores.items()}
    made = [Network("full", None, 0.0, None, {})]
    for ratio in [prune.ratio, *sorted(set(prune.curve) - {prune.ratio})]:
        asked = prune.model_copy(update={"ratio": ratio})
        planned = plan_removal(scores, asked)
        made.append(Network(f"shapley-{ratio}", "shapley", ratio, None, planned))
        for seed in prune.random_seeds:
            drawn = random_removal(n_units, planned, asked, seed)
            made.append(Network(f"random-{ratio}-{seed}", "random", ratio, seed, drawn))
    return made


def plan_json(plan: Network, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The content of ``prune/plan.json``."""
    return {
        "format": 1,
        "groups": {
            group: {"n_units": len(values), "removed": list(plan.removed[group])}
            for group, values in scores.items()
        },
    }


def evaluate_tasks(made: Sequence[Network], n_images: int) -> list[EvaluateTask]:
    """A task per network and slice of the evaluation images; slices of a network side by side."""
    return [
        EvaluateTask(network.name, network.removed, first, last, float(last - first))
        for network in made
        for first in range(0, n_images, EVALUATE_IMAGES)
        for last in [min(first + EVALUATE_IMAGES, n_images)]
    ]


def measured(made: Sequence[Network], evaluations: Iterable[Evaluation]) -> list[Measurement]:
    """Evaluations of slices merged per network, in image order whoever was first."""
    parts: dict[str, list[Evaluation]] = {network.name: [] for network in made}
    for evaluation in evaluations:
        parts[evaluation.task.network].append(evaluation)
    results = []
    for network in made:
        total = Tally(0, 0, 0.0)
        for part in sorted(parts[network.name], key=lambda part: part.task.first):
            total += part.tally
        some = parts[network.name][0]
        results.append(Measurement(network, total, some.parameters, some.multiply_adds))
    return results


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
