"""The columns of the tables in ``explain/``: how the criterion comes to its scores.

Filled by `explain`; read by whoever asks why.
"""

import pyarrow as pa

from shapray.storage.column import column
from shapray.storage.criteria import CRITERIA

_TEXT, _INT, _DOUBLE = pa.string(), pa.int64(), pa.float64()
_GROUP = column("group", _TEXT, "name of the group: its root module", nullable=False)
_UNIT = column("unit", _INT, "number of the unit within its group, from 0", nullable=False)
_LABEL = column("label", _INT, "number of the class")
_IMAGE = column("image_id", _TEXT, "the calibration image", nullable=False)

UNITS = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("positive", _DOUBLE, "mean over images of max(Shapley value, 0)", "value"),
        column("negative", _DOUBLE, "mean over images of min(Shapley value, 0)", "value"),
        column("negative_share", _DOUBLE, "images on which the Shapley value is below 0", "share"),
        column(
            "activation",
            _DOUBLE,
            "mean absolute activation, as the consumers read it, over images, channels and "
            "positions",
        ),
        *(CRITERIA[name].with_nullable(True) for name in ("l1_norm", "taylor", "leave_one_out")),
        CRITERIA["obs"].with_name("unrepaired").with_nullable(True),
        column(
            "selectivity",
            _DOUBLE,
            "class selectivity of the Shapley values: (a - b) / (a + b), a the largest mean of "
            "absolutes over the images of a class, b the mean over the other classes of theirs; 0: "
            "all classes alike, 1: one class alone",
        ),
        column(
            "activation_selectivity",
            _DOUBLE,
            "the same of the activations (Morcos et al. 2018)",
        ),
        column(
            "serves",
            _INT,
            "label of the class with the largest mean Shapley value; null where none is above 0",
        ),
        column("removed", pa.bool_(), "whether the job's own cut removes it"),
        column(
            "misplaced",
            _DOUBLE,
            "chance that it belongs on the other side of the cut, given how many of the group go, "
            "by the total errors of the scores; null where that is not known, or nothing goes",
            "probability",
        ),
    ]
)
CORRELATIONS = pa.schema(
    [
        _GROUP,
        column("score", _TEXT, "mean or mean_abs of the Shapley values", nullable=False),
        column("other", _TEXT, "what it is compared with: a column of units", nullable=False),
        column("correlation", _DOUBLE, "Spearman's rank correlation over the group's units"),
        column("low", _DOUBLE, "lower end of its 95 % interval"),
        column("high", _DOUBLE, "upper end of its 95 % interval"),
        column("n_units", _INT, "units with both numbers", "units", nullable=False),
    ]
)
INTERACTIONS = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("other", _INT, "the other unit; larger than `unit`", nullable=False),
        column(
            "kind",
            _TEXT,
            "which ends of the group the two are from: top, bottom, across",
            nullable=False,
        ),
        column(
            "interaction",
            _DOUBLE,
            "pairwise Shapley interaction index, mean over images: below 0 one makes up for the "
            "other (redundancy), above 0 they need each other (synergy)",
            "value",
            nullable=False,
        ),
        column("standard_error", _DOUBLE, "of it, from the sampling", "value"),
        column("total_error", _DOUBLE, "of it, from the sampling and the images", "value"),
        column("n_images", _INT, "images it is a mean of", "images", nullable=False),
        column("n_exact", _INT, "of these: by all coalitions", "images", nullable=False),
    ]
)
SIZES = pa.schema(
    [
        _GROUP,
        column("unit", _INT, "number of the unit; null: all units of the group summed up"),
        column("size_from", _DOUBLE, "smallest share of the others that is there", "share"),
        column("size_to", _DOUBLE, "largest share of the others that is there", "share"),
        column(
            "marginal",
            _DOUBLE,
            "mean marginal contribution to coalitions of that size",
            "value",
            nullable=False,
        ),
        column("standard_error", _DOUBLE, "of it, over images", "value"),
        column("n_images", _INT, "images it is a mean of", "images", nullable=False),
    ]
)
ADDITIVITY = pa.schema(
    [
        _GROUP,
        column("n_images", _INT, "images these are means of", "images", nullable=False),
        column("value_all", _DOUBLE, "value of the whole network", "value", nullable=False),
        column("value_none", _DOUBLE, "value without all units of the group", "value"),
        column("alone", _DOUBLE, "sum over units of value({unit}) - value(none)", "value"),
        column("last", _DOUBLE, "sum over units of value(all) - value(all but the unit)", "value"),
        column("alone_error", _DOUBLE, "standard error of `alone`, over images", "value"),
        column("last_error", _DOUBLE, "standard error of `last`, over images", "value"),
    ]
)
CLASS_REMOVAL = pa.schema(
    [
        column("label", _INT, "the class", nullable=False),
        column(
            "removed",
            _TEXT,
            "which units went: those that serve the `class` most, as many of every group at "
            "`random`, or those of largest `score` whatever the class",
            nullable=False,
        ),
        column("n_units", _INT, "how many", "units", nullable=False),
        column("units", pa.list_(pa.string()), "group/unit of each", nullable=False),
        column("n_images", _INT, "evaluation images of the class", "images", nullable=False),
        column("n_others", _INT, "evaluation images of other classes", "images", nullable=False),
        column("top1_before", _DOUBLE, "accuracy on the class, whole network", "share"),
        column("top1_after", _DOUBLE, "accuracy on the class without the units", "share"),
        column("top1_low", _DOUBLE, "lower end of its 95 % interval", "share"),
        column("top1_high", _DOUBLE, "upper end of its 95 % interval", "share"),
        column("others_before", _DOUBLE, "accuracy on other classes, whole network", "share"),
        column("others_after", _DOUBLE, "accuracy on other classes without the units", "share"),
        column("others_low", _DOUBLE, "lower end of its 95 % interval", "share"),
        column("others_high", _DOUBLE, "upper end of its 95 % interval", "share"),
    ]
)
NEGATIVES = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("mean", _DOUBLE, "its score, below 0", "value", nullable=False),
        column("total_error", _DOUBLE, "of the score", "value"),
        column("negative_share", _DOUBLE, "images on which its value is below 0", "share"),
        column("label", _INT, "class whose images make most of the negative sum"),
        column("label_share", _DOUBLE, "that class's part of the negative sum", "share"),
        column(
            "loss_change",
            _DOUBLE,
            "cross-entropy of the evaluation images without this unit alone, less the whole "
            "network's; below 0 removing it helps",
            "nats",
        ),
        column("loss_low", _DOUBLE, "lower end of its 95 % interval, paired by image", "nats"),
        column("loss_high", _DOUBLE, "upper end of its 95 % interval, paired by image", "nats"),
        column("top1_change", _DOUBLE, "accuracy without the unit, less that with it", "share"),
        column("n_images", _INT, "evaluation images", "images"),
    ]
)
SAMPLING = pa.schema(
    [
        _GROUP,
        _IMAGE,
        column("n_active", _INT, "active units: so many players", "units", nullable=False),
        column("permutations", _INT, "price of the sampling", nullable=False),
        column(
            "error",
            _DOUBLE,
            "squared error of the sampled values over the squared norm of the exact ones, mean "
            "over seeds",
        ),
        column("n_seeds", _INT, "independent draws", nullable=False),
    ]
)
FLIPS = pa.schema(
    [
        _GROUP,
        column("permutations", _INT, "price of the sampling", nullable=False),
        column("n_images", _INT, "images that are exact", "images", nullable=False),
        column(
            "n_cut",
            _INT,
            "units that go: as many as the job removes, half of a group that loses none",
            "units",
            nullable=False,
        ),
        column(
            "another_cut",
            _DOUBLE,
            "share of draws in which sampling these images would have removed another set of units "
            "than their exact values, by the mean if the job ranks by it, else by mean_abs",
            "share",
        ),
        column("n_other", _DOUBLE, "mean number of units that differ", "units"),
        column("n_seeds", _INT, "independent draws", nullable=False),
    ]
)
EXTREMES = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("direction", _TEXT, "up: largest values; down: smallest", nullable=False),
        column("rank", _INT, "1: the most extreme", nullable=False),
        _IMAGE,
        _LABEL,
        column("value", _DOUBLE, "Shapley value on that image", "value", nullable=False),
        column("standard_error", _DOUBLE, "of it; 0 where exact", "value"),
    ]
)
CARDS = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("end", _TEXT, "top or bottom of the group by the job's ranking", nullable=False),
        column("direction", _TEXT, "up or down", nullable=False),
        column("rank", _INT, "1: the most extreme", nullable=False),
        _IMAGE,
        _LABEL,
        column("value", _DOUBLE, "Shapley value on that image", "value", nullable=False),
        column("picture", pa.binary(), "small picture of the image as the network sees it, JPEG"),
        column(
            "where",
            pa.list_(pa.float32()),
            "what each position of the unit adds to the logit of the image's label, row by row: "
            "integrated gradients from without the unit to with it, which sum to the logit's fall "
            "without it (Sundararajan et al. 2017)",
            "logit",
        ),
        column("where_height", _INT, "rows of `where`"),
        column("where_width", _INT, "columns of `where`"),
    ]
)
KERNELS = pa.schema(
    [
        _GROUP,
        _UNIT,
        column("picture", pa.binary(), "its kernel on the image's own channels, PNG"),
        column("height", _INT, "of the kernel", "pixels", nullable=False),
        column("width", _INT, "of the kernel", "pixels", nullable=False),
    ]
)
TABLES = {
    "units": UNITS,
    "correlations": CORRELATIONS,
    "interactions": INTERACTIONS,
    "sizes": SIZES,
    "additivity": ADDITIVITY,
    "class_removal": CLASS_REMOVAL,
    "negatives": NEGATIVES,
    "sampling": SAMPLING,
    "flips": FLIPS,
    "extremes": EXTREMES,
    "cards": CARDS,
    "kernels": KERNELS,
}
