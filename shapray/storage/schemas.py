"""The columns of every table of a run, each with what it holds in words.

A shard's are filled in `worker.rows`; `storage.shards` accepts those of earlier versions, too.
``scores.parquet`` gets more, see `storage.criteria`.
"""

import pyarrow as pa

from shapray.storage.column import column

TABLE_FORMAT = 1  # raised when the meaning of a shard's columns changes

_TEXT, _INT, _DOUBLE, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_GROUP = column("group", _TEXT, "name of the group: its root module", nullable=False)
_CRITERION = column(
    "criterion",
    _TEXT,
    "what the units are ranked by; shapley: the job's own ranking by its Shapley values",
    nullable=False,
)
_SEED = column("seed", _INT, "of a ranking at random; null otherwise")

GROUPS = pa.schema(
    [
        _GROUP,
        column("n_units", _INT, "units in the group", "units", nullable=False),
        column("modules", pa.list_(_TEXT), "modules that a unit spans", nullable=False),
        column("kind", _TEXT, "conv or linear: what the root module is", nullable=False),
        column(
            "flat",
            _FLAG,
            "whether no consumer's input depends on another consumer's output; a unit whose "
            "consumers read only zeros is a null player then",
            nullable=False,
        ),
        column("status", _TEXT, "scored or excluded", nullable=False),
        column("reason", _TEXT, "why it is excluded; null where it is scored"),
        column(
            "tail_macs",
            _INT,
            "what is computed anew for a coalition on an image; null where it is excluded",
            "multiply-adds",
        ),
        column(
            "blocks",
            pa.list_(pa.int32()),
            "block of each unit: a cut takes equally many of each, as a convolution in groups has "
            "equally many channels in all of them; null: any units may go",
        ),
    ]
)
PRICES = pa.schema(
    [
        _GROUP,
        column(
            "permutations",
            _INT,
            "price of sampling an image, in permutations",
            "permutations",
            nullable=False,
        ),
        column(
            "sampling",
            _TEXT,
            "what is drawn: permutations, or pairs (of a coalition and its complement, where that "
            "can be)",
            nullable=False,
        ),
        column(
            "told_every",
            _INT,
            "of so many images one is sampled at twice the price, from which the error of the "
            "others is told; null: none is",
            "images",
        ),
        column(
            "n_images",
            _INT,
            "the first calibration images, which it is scored on",
            "images",
            nullable=False,
        ),
        column(
            "image_variance",
            _DOUBLE,
            "variance of the Shapley values over images, without the sampling's, mean over the "
            "units, by the pilot; null where there was none",
            "value squared",
        ),
        column(
            "sampling_variance",
            _DOUBLE,
            "variance of an image's Shapley values from the sampling, mean over the units, by the "
            "pilot; null where there was none",
            "value squared",
        ),
        column(
            "score_variance",
            _DOUBLE,
            "variance of the scores over the units, without their errors' part, by the pilot; null "
            "where there was none",
            "value squared",
        ),
    ]
)
_PER_UNIT = "an entry per unit of the group"
SHARD = pa.schema(
    [
        _GROUP,
        column("image_id", _TEXT, "the calibration image", nullable=False),
        column("label", _INT, "number of the image's class; null without labels"),
        column(
            "n_active",
            pa.int32(),
            "units that take part on this image, the others being null players",
            "units",
            nullable=False,
        ),
        column(
            "estimator",
            _TEXT,
            "exact: by all coalitions of the active units; permutation: sampled",
            nullable=False,
        ),
        column(
            "sampling",
            _TEXT,
            "what was drawn: pairs (of a coalition and its complement) or permutations; null where "
            "exact",
        ),
        column(
            "n_evaluations",
            _INT,
            "coalitions whose value was computed",
            "coalitions",
            nullable=False,
        ),
        column(
            "n_permutations",
            pa.int32(),
            "price of the sampling; 0 where exact",
            "permutations",
            nullable=False,
        ),
        column("value_all", _DOUBLE, "value of the whole network", "value", nullable=False),
        column(
            "value_none", _DOUBLE, "value without all units of the group", "value", nullable=False
        ),
        column(
            "shapley_value",
            pa.list_(pa.float32()),
            f"{_PER_UNIT}: its average marginal contribution over all orders of joining, above 0 "
            "where the network needs it; they sum to value_all - value_none",
            "value",
            nullable=False,
        ),
        column(
            "standard_error",
            pa.list_(pa.float32()),
            f"{_PER_UNIT}: of its Shapley value, from the sampling; 0 where exact, null where a "
            "single pair of permutations tells none",
            "value",
            nullable=False,
        ),
        column(
            "active",
            pa.list_(_FLAG),
            f"{_PER_UNIT}: whether it takes part on this image; a null player's value is 0",
            nullable=False,
        ),
    ]
)
_STATISTICS = [
    column("mean", _DOUBLE, "mean over images of the Shapley value", "value", nullable=False),
    column(
        "mean_abs",
        _DOUBLE,
        "mean over images of the absolute Shapley value",
        "value",
        nullable=False,
    ),
    column(
        "std",
        _DOUBLE,
        "standard deviation of the Shapley values over images; null of a single image",
        "value",
    ),
    column(
        "standard_error",
        _DOUBLE,
        "of `mean`, from the sampling alone; 0 where all images are exact",
        "value",
    ),
    column("image_error", _DOUBLE, "of `mean`, from the choice of the calibration images", "value"),
    column(
        "total_error",
        _DOUBLE,
        "of `mean`, from both: against the mean over all images that these were drawn from",
        "value",
    ),
    column("mean_abs_standard_error", _DOUBLE, "of `mean_abs`, from the sampling alone", "value"),
    column(
        "mean_abs_image_error",
        _DOUBLE,
        "of `mean_abs`, from the choice of the calibration images",
        "value",
    ),
    column(
        "mean_abs_total_error",
        _DOUBLE,
        "of `mean_abs`, from both, and from what the sampling's noise lifts absolute values by",
        "value",
    ),
    column("n_images", _INT, "images that these are means of", "images", nullable=False),
    column("n_exact", _INT, "of these: by all coalitions", "images", nullable=False),
    column(
        "active_fraction", _DOUBLE, "images on which the unit takes part", "share", nullable=False
    ),
]
_UNIT = column("unit", _INT, "number of the unit within its group, from 0", nullable=False)
_LABEL = column("label", _INT, "number of the class whose images these are of", nullable=False)
SCORES = pa.schema([_GROUP, _UNIT, *_STATISTICS])
CLASS_SCORES = pa.schema([_GROUP, _UNIT, _LABEL, *_STATISTICS])
CURVE = pa.schema(
    [
        column(
            "criterion",
            _TEXT,
            "what the units are ranked by; shapley: the job's own ranking by its Shapley values; "
            "whole: the network with all units",
            nullable=False,
        ),
        column("repair", _TEXT, "what was done after the cut, joined by +; none", nullable=False),
        column(
            "size",
            _DOUBLE,
            "the job's own size that this network is to have, in the measure of its target: the "
            "part that stays, for ratio the part of the units that goes; null of the whole network",
            "share",
        ),
        column(
            "ratio",
            _DOUBLE,
            "units that were to go, where the job's target is a ratio; elsewhere those that went",
            "share",
            nullable=False,
        ),
        column("removed_fraction", _DOUBLE, "units that went", "share", nullable=False),
        _SEED,
        column("rounds", _INT, "of scoring and cutting; 0: nothing went", "rounds", nullable=False),
        column(
            "top1",
            _DOUBLE,
            "accuracy: evaluation images whose largest output is the label's",
            "share",
            nullable=False,
        ),
        column(
            "top1_low", _DOUBLE, "lower end of its 95 % interval (Wilson)", "share", nullable=False
        ),
        column(
            "top1_high", _DOUBLE, "upper end of its 95 % interval (Wilson)", "share", nullable=False
        ),
        column(
            "top5",
            _DOUBLE,
            "evaluation images whose label is among the five largest outputs; null below six "
            "classes",
            "share",
        ),
        column(
            "loss",
            _DOUBLE,
            "mean cross-entropy of the evaluation images; null where it is not finite",
            "nats",
        ),
        column("loss_low", _DOUBLE, "lower end of its 95 % interval, by the images", "nats"),
        column("loss_high", _DOUBLE, "upper end of its 95 % interval, by the images", "nats"),
        column("parameters", _INT, "numbers in the weights", "parameters", nullable=False),
        column(
            "multiply_adds",
            _INT,
            "for one image, of convolutions and matrix products",
            "multiply-adds",
            nullable=False,
        ),
        column("n_images", _INT, "evaluation images", "images", nullable=False),
        column("n_removed", _INT, "units that went, of all groups", "units", nullable=False),
    ]
)
LOSSES = pa.schema(
    [
        _CRITERION,
        _SEED,
        _GROUP,
        column(
            "n_removed",
            _INT,
            "units of this group that go, all others whole",
            "units",
            nullable=False,
        ),
        column(
            "loss",
            _DOUBLE,
            "KL divergence of the outputs from the whole network's, after the repair by least "
            "squares if the job has one, mean over calibration images that it was not fitted to",
            "nats",
            nullable=False,
        ),
    ]
)
