"""The columns of every table of a run.

A shard's are filled in `worker.rows`; `storage.shards` accepts those of earlier versions, too.
"""

import pyarrow as pa

TABLE_FORMAT = 1  # raised when the meaning of a shard's columns changes

GROUPS = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("n_units", pa.int64(), nullable=False),
        pa.field("modules", pa.list_(pa.string()), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("flat", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("tail_macs", pa.int64()),
    ]
)
PRICES = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("permutations", pa.int64(), nullable=False),
        pa.field("sampling", pa.string(), nullable=False),
        pa.field("told_every", pa.int64()),
        pa.field("n_images", pa.int64(), nullable=False),
        pa.field("image_variance", pa.float64()),
        pa.field("sampling_variance", pa.float64()),
        pa.field("score_variance", pa.float64()),
    ]
)
SHARD = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("n_active", pa.int32(), nullable=False),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("sampling", pa.string()),
        pa.field("n_evaluations", pa.int64(), nullable=False),
        pa.field("n_permutations", pa.int32(), nullable=False),
        pa.field("value_all", pa.float64(), nullable=False),
        pa.field("value_none", pa.float64(), nullable=False),
        pa.field("shapley_value", pa.list_(pa.float32()), nullable=False),
        pa.field("standard_error", pa.list_(pa.float32()), nullable=False),
        pa.field("active", pa.list_(pa.bool_()), nullable=False),
    ]
)
_STATISTICS = [
    pa.field("mean", pa.float64(), nullable=False),
    pa.field("mean_abs", pa.float64(), nullable=False),
    pa.field("std", pa.float64()),
    pa.field("standard_error", pa.float64()),
    pa.field("image_error", pa.float64()),
    pa.field("total_error", pa.float64()),
    pa.field("mean_abs_standard_error", pa.float64()),
    pa.field("mean_abs_image_error", pa.float64()),
    pa.field("mean_abs_total_error", pa.float64()),
    pa.field("n_images", pa.int64(), nullable=False),
    pa.field("n_exact", pa.int64(), nullable=False),
    pa.field("active_fraction", pa.float64(), nullable=False),
]
_UNIT = [
    pa.field("group", pa.string(), nullable=False),
    pa.field("unit", pa.int64(), nullable=False),
]
SCORES = pa.schema([*_UNIT, *_STATISTICS])
CLASS_SCORES = pa.schema([*_UNIT, pa.field("label", pa.int64(), nullable=False), *_STATISTICS])
CURVE = pa.schema(
    [
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("repair", pa.string(), nullable=False),
        pa.field("size", pa.float64()),
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("removed_fraction", pa.float64(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("rounds", pa.int64(), nullable=False),
        pa.field("top1", pa.float64(), nullable=False),
        pa.field("top1_low", pa.float64(), nullable=False),
        pa.field("top1_high", pa.float64(), nullable=False),
        pa.field("top5", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("loss_low", pa.float64()),
        pa.field("loss_high", pa.float64()),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("multiply_adds", pa.int64(), nullable=False),
        pa.field("n_images", pa.int64(), nullable=False),
        pa.field("n_removed", pa.int64(), nullable=False),
    ]
)
LOSSES = pa.schema(
    [
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("group", pa.string(), nullable=False),
        pa.field("n_removed", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
    ]
)
