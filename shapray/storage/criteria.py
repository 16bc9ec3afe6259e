"""The columns that ``scores.parquet`` gets where a job names other criteria: each unit's worth by
one of them, larger = more worth keeping. `pruning.criteria` computes them."""

import pyarrow as pa

from shapray.storage.column import column

CRITERIA = {
    field.name: field
    for field in (
        column(name, pa.float64(), meaning, unit, nullable=False)
        for name, meaning, unit in (
            (
                "l1_norm",
                "sum of the absolute weights that make the unit (Li et al. 2017)",
                "",
            ),
            ("l2_norm", "Euclidean norm of the weights that make the unit", ""),
            (
                "batchnorm_scale",
                "absolute scale of the unit in the BatchNorm behind it (Liu et al. 2017)",
                "",
            ),
            (
                "apoz",
                "positions at which a consumer reads something else than zero, over images: one "
                "minus the average percentage of zeros (Hu et al. 2016)",
                "share",
            ),
            (
                "taylor",
                "mean over images of the loss's change without the unit, either way, to first "
                "order (Molchanov et al. 2017)",
                "nats",
            ),
            (
                "taylor_signed",
                "mean over images of what the loss grows by without the unit, to first order",
                "nats",
            ),
            (
                "obd",
                "what the loss grows by without the unit, to second order (LeCun et al. 1989)",
                "nats",
            ),
            (
                "jacobian",
                "squared derivatives of the images' losses with respect to the unit's weights "
                "taken together, layer by layer (Chen et al. 2025)",
                "nats squared",
            ),
            (
                "leave_one_out",
                "mean over images of what the loss rises by if this unit alone goes",
                "nats",
            ),
            (
                "obs",
                "squared error of the consumers' outputs that their other weights cannot make up "
                "for when the unit goes, the least important before it (Hassibi, Stork 1993)",
                "",
            ),
            (
                "shapley_sampled",
                "mean over images of the absolute Shapley value, all images sampled",
                "value",
            ),
        )
    )
}
