"""Which tables a run may have, where each lies, and what its columns hold."""

from dataclasses import dataclass

import pyarrow as pa

from shapray.storage import explained, names, schemas
from shapray.storage.column import column
from shapray.storage.criteria import CRITERIA

IMAGES, REMOVED, VALUES = "images", "removed", "values"
_OF_UNITS = ("shapley_value", "standard_error", "active")  # in a shard, an entry per unit

# The content of ``plan.json`` as a table.
_OF_REMOVED = pa.schema(
    [
        schemas.SCORES.field("group"),
        column("unit", pa.int64(), "number of a unit that the cut removes", nullable=False),
    ]
)
# A row per group, image and unit: the shards with their lists laid out.
OF_VALUES = pa.schema(
    [
        *(schemas.SHARD.field(name) for name in ("group", "image_id", "label", "estimator")),
        schemas.SCORES.field("unit"),
        column(
            "shapley_value",
            pa.float32(),
            "the unit's average marginal contribution over all orders of joining, above 0 where "
            "the network needs it",
            "value",
        ),
        column(
            "standard_error",
            pa.float32(),
            "of it, from the sampling; 0 where exact, null where not known",
            "value",
        ),
        column("active", pa.bool_(), "whether the unit takes part on this image"),
    ]
)
VALUES_IN_SQL = f"""
SELECT "group", image_id, label, estimator, unnest(range(len(shapley_value))) AS unit,
    {", ".join(f"unnest({name}) AS {name}" for name in _OF_UNITS)}
FROM {IMAGES}
"""


@dataclass(frozen=True)
class Source:
    """A table's file, relative to the run directory (of `IMAGES`: the shards' folder), and its
    columns."""

    path: str
    columns: pa.Schema


def catalogue(cut: str | None = None) -> dict[str, Source]:
    """All tables by name.

    Args:
        cut: whose `curve`, `group_losses` and `removed`; None: the job's own.
    """
    folder = names.folder_of(cut)
    scores = pa.schema([*schemas.SCORES, *CRITERIA.values()])
    return {
        "groups": Source(names.GROUPS, schemas.GROUPS),
        "prices": Source(names.PRICES, schemas.PRICES),
        "scores": Source(names.SCORES, scores),
        "class_scores": Source(names.CLASS_SCORES, schemas.CLASS_SCORES),
        IMAGES: Source("shards", schemas.SHARD),
        "curve": Source(f"{folder}/{names.CURVE}", schemas.CURVE),
        "group_losses": Source(f"{folder}/{names.LOSSES}", schemas.LOSSES),
        REMOVED: Source(f"{folder}/{names.PLAN}", _OF_REMOVED),
        **{
            name: Source(names.explained(name), columns)
            for name, columns in explained.TABLES.items()
        },
    }
