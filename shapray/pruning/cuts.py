"""Scores to the cuts that are compared: the plan's, and as many units at random."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shapray.config import Prune
from shapray.network.index_maps import Kept
from shapray.network.unreached import Settings
from shapray.pruning.ranking import plan_removal, random_removal

PLAN_FORMAT = 1  # of ``prune/plan.json``; raised when what is in it changes its meaning


@dataclass(frozen=True)
class Cut:
    """Units that go, and how they were chosen."""

    name: str
    criterion: str | None  # "shapley" or "random"; None: nothing was removed
    ratio: float
    seed: int | None
    removed: Mapping[str, Sequence[int]]  # group -> units

    @property
    def n_removed(self) -> int:
        return sum(len(units) for units in self.removed.values())


def ranking_scores(scores: pa.Table, rank_by: str) -> dict[str, np.ndarray]:
    """``scores.parquet`` -> group -> (n_units,) float64, in the table's order."""
    groups = np.array(scores["group"].to_pylist(), dtype=object)
    values = scores[rank_by].to_numpy()
    return {group: values[groups == group] for group in dict.fromkeys(groups)}


def cuts(scores: Mapping[str, np.ndarray], prune: Prune) -> list[Cut]:
    """None, then for every ratio the plan and its random counterparts.

    The job's own ratio comes first; the others are those of ``prune.curve``, ascending.
    """
    n_units = {group: len(values) for group, values in scores.items()}
    made = [Cut("full", None, 0.0, None, {})]
    for ratio in [prune.ratio, *sorted(set(prune.curve) - {prune.ratio})]:
        asked = prune.model_copy(update={"ratio": ratio})
        planned = plan_removal(scores, asked)
        made.append(Cut(f"shapley-{ratio}", "shapley", ratio, None, planned))
        for seed in prune.random_seeds:
            drawn = random_removal(n_units, planned, asked, seed)
            made.append(Cut(f"random-{ratio}-{seed}", "random", ratio, seed, drawn))
    return made


def plan_json(
    plan: Cut, scores: Mapping[str, np.ndarray], kept: Mapping[str, Kept], dropped: Settings
) -> dict[str, Any]:
    """The content of ``prune/plan.json``.

    Args:
        kept: what is left of each module that loses channels; null in the file: all.
        dropped: what was set afterwards so that the network can be trained.
    """
    return {
        "format": PLAN_FORMAT,
        "groups": {
            group: {"n_units": len(values), "removed": list(plan.removed[group])}
            for group, values in scores.items()
        },
        "modules": {module: asdict(found) for module, found in kept.items()},
        "dropped": dict(dropped),
    }
