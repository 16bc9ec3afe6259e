"""What each of PyTorch's operations does to the labels of channels.

A table: an operation that is missing here is one line away. What needs no line: views (a storage's
labels are seen through them), and what works entry by entry (PyTorch itself marks those). What is
in neither leaves its results as a mixture of all it read, so that the channels in it are excluded,
with the operation's name as the reason, as soon as anything depends on them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shapray.network.coupling import Coupling
from shapray.network.rules import (
    Call,
    Rule,
    along,
    batch_norm,
    copied,
    entry_by_entry,
    group_norm,
    halves_meet,
    layer_norm,
    moved,
    operation_name,
    over_space,
    product,
    reduced,
    same,
)

_OF_ONE_STORAGE = {
    "_unsafe_view",  # says nothing of it
    *("as_strided", "detach", "squeeze", "swapdims", "t", "transpose", "unsqueeze"),  # in place
}


def is_view(operation: Any) -> bool:
    """Results look into the storage of an argument, and nothing is written."""
    if operation_name(operation) in _OF_ONE_STORAGE:
        return True
    infos = [r.alias_info for r in operation._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def by_name(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, defaults included."""
    parameters = operation._schema.arguments
    given = dict(zip((p.name for p in parameters), args, strict=False)) | dict(kwargs)
    return {
        p.name: given.get(p.name, p.default_value)
        for p in parameters
        if p.name in given or p.has_default_value()
    }


def rule_for(operation: Any) -> Rule | None:
    """What an operation does to labels; None if it is not known."""
    rule = RULES.get(operation_name(operation))
    if rule is None and torch.Tag.pointwise in operation.tags:
        return entry_by_entry
    return rule


MOVES = (
    "_to_copy",
    "clone",
    "constant_pad_nd",
    "contiguous",
    "flip",
    "gather",
    "index",
    "index_select",
    "lift_fresh",
    "native_channel_shuffle",
    "repeat",
    "roll",
)
"""Operations on one tensor whose results are entries of it, and zeros."""


def moved_labels(
    operation: Any, arguments: Mapping[str, Any], labels_of: Callable[[Tensor], Tensor]
) -> list[Tensor] | None:
    """Labels of what an operation moves, in its results' shapes; None if it is none of `MOVES`."""
    if operation_name(operation) not in MOVES or arguments.get("value"):
        return None
    call = Call(operation, arguments, (), "", labels_of, Coupling())
    return moved(call)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *MOVES,
            "cat",
            "expand_copy",
            "im2col",
            "masked_select",
            "permute_copy",
            "pixel_shuffle",
            "pixel_unshuffle",
            "reflection_pad1d",
            "reflection_pad2d",
            "reflection_pad3d",
            "replication_pad1d",
            "replication_pad2d",
            "replication_pad3d",
            "rot90",
            "slice_scatter",
            "select_scatter",
            "split_copy",
            "split_with_sizes_copy",
            "stack",
            "take_along_dim",
            "tril",
            "triu",
            "unfold",
            "view_copy",
        ),
        moved,
    ),
    **dict.fromkeys(
        (
            "_conj_physical",
            "alpha_dropout",
            "bernoulli",
            "dropout",
            "feature_dropout",
            "fill",
            "hardswish",
            "native_dropout",
            "normal",
            "rrelu_with_noise",
            "zero",
        ),
        same,
    ),
    "copy": copied,
    **dict.fromkeys(  # not all of them are marked in every version of PyTorch
        (
            "_prelu_kernel",
            "celu",
            "elu",
            "gelu",
            "hardshrink",
            "hardsigmoid",
            "hardtanh",
            "leaky_relu",
            "mish",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "softplus",
            "softshrink",
            "tanh",
            "threshold",
        ),
        entry_by_entry,
    ),
    "glu": halves_meet,
    **{
        f"{name}{n}d": over_space(n)
        for n in (1, 2, 3)
        for name in (
            "_adaptive_avg_pool",
            "adaptive_avg_pool",
            "adaptive_max_pool",
            "avg_pool",
            "fractional_max_pool",
            "max_pool",
            "mkldnn_adaptive_avg_pool",
            "mkldnn_max_pool",
            "upsample_bicubic",
            "upsample_bilinear",
            "upsample_linear",
            "upsample_nearest",
            "_upsample_nearest_exact",
            "upsample_trilinear",
            "grid_sampler_",
        )
    },
    **{f"max_pool{n}d_with_indices": over_space(n) for n in (1, 2, 3)},
    "_upsample_bilinear2d_aa": over_space(2),
    "_upsample_bicubic2d_aa": over_space(2),
    "grid_sampler_2d": over_space(2),
    **dict.fromkeys(
        (
            "all",
            "amax",
            "amin",
            "aminmax",
            "any",
            "argmax",
            "argmin",
            "linalg_vector_norm",
            "logsumexp",
            "max",
            "mean",
            "median",
            "min",
            "nansum",
            "norm",
            "prod",
            "std",
            "std_mean",
            "sum",
            "var",
            "var_mean",
        ),
        reduced,
    ),
    **dict.fromkeys(
        (
            "_log_softmax",
            "_softmax",
            "cummax",
            "cummin",
            "cumprod",
            "cumsum",
            "fft_fft",
            "logcumsumexp",
            "sort",
        ),
        along,
    ),
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_batch_norm_no_update": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "native_batch_norm": batch_norm,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "bmm": product,
    "mm": product,
    "addmm": product,
    "baddbmm": product,
}
