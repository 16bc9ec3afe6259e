"""Estimates as the rows of a shard."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from shapray.shapley.estimators import Estimate
from shapray.storage.schemas import SHARD


def shard_table(
    group: str, ids: Sequence[str], labels: Tensor | None, estimates: Sequence[Estimate]
) -> pa.Table:
    """Estimates as the rows of a shard; a standard error that was not measured becomes null."""
    for image_id, found in zip(ids, estimates, strict=True):
        assert np.isfinite(found.shapley_value).all(), (group, image_id)
    return pa.Table.from_pydict(
        {
            "group": [group] * len(ids),
            "image_id": list(ids),
            "label": [None] * len(ids) if labels is None else labels.tolist(),
            "n_active": [int(found.active.sum()) for found in estimates],
            "estimator": [found.estimator for found in estimates],
            "sampling": [found.sampling for found in estimates],
            "n_evaluations": [found.n_evaluations for found in estimates],
            "n_permutations": [found.n_permutations for found in estimates],
            "value_all": [found.value_all for found in estimates],
            "value_none": [found.value_none for found in estimates],
            "shapley_value": [found.shapley_value.tolist() for found in estimates],
            "standard_error": [
                [None if math.isnan(error) else error for error in found.standard_error.tolist()]
                for found in estimates
            ],
            "active": [found.active.tolist() for found in estimates],
        },
        schema=SHARD,
    )
