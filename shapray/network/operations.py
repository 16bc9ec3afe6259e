"""What each of PyTorch's operations does to the labels of channels.

A table: an operation that is missing here is one line away. What needs no line: views (a storage's
labels are seen through them), and what works entry by entry (PyTorch itself marks those). What is
in neither leaves its results as a mixture of all it read, so that the channels in it are excluded,
with the operation's name as the reason, as soon as anything depends on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from shapray.network.coupling import MIXED, Coupling


@dataclass(frozen=True)
class Call:
    """An operation that has run.

    Attributes:
        operation: an ATen overload.
        arguments: by the names of its schema, defaults included.
        results: its tensors.
        place: where in the network, for reasons.
        labels_of: a tensor's labels, in its shape; zeros if it has none.
        coupling: of the network.
    """

    operation: Any
    arguments: Mapping[str, Any]
    results: Sequence[Tensor]
    place: str
    labels_of: Callable[[Tensor], Tensor]
    coupling: Coupling

    @property
    def name(self) -> str:
        """Without the namespace, and without the underscore of an operation in place."""
        return operation_name(self.operation)

    @property
    def words(self) -> str:
        return f"aten::{self.name}{self.place}"

    @property
    def first(self) -> Tensor:
        """Labels of the first tensor among the arguments."""
        return self.labels_of(self.tensors()[0])

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(dict(self.arguments)) if isinstance(leaf, Tensor)]

    def mixed(self) -> list[Tensor]:
        """Every result a mixture of all that was read."""
        given = torch.cat([self.labels_of(tensor).flatten() for tensor in self.tensors()])
        return self.mixture_of(given)

    def mixture_of(self, labels: Tensor) -> list[Tensor]:
        label = self.coupling.mixture(labels, f"{MIXED} by {self.words}")
        return [label] * len(self.results)


Rule = Callable[[Call], Sequence[Tensor]]
"""Labels of every result, each broadcastable to its shape."""


def operation_name(operation: Any) -> str:
    return str(operation._schema.name).partition("::")[2].removesuffix("_")


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
        return _entry_by_entry
    return rule


def _entry_by_entry(call: Call) -> list[Tensor]:
    labelled = [labels for t in call.tensors() if (labels := call.labels_of(t)).any()]
    spread = f"its channel is spread over others by {call.words}"
    return [call.coupling.together(labelled, spread)] * len(call.results)


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
    return _moved(call)


def _same(call: Call) -> list[Tensor]:
    """Results have the shape of the first tensor, entry for entry."""
    return [call.first] * len(call.results)


def _moved(call: Call) -> list[Tensor]:
    """Entries are moved, left out or repeated: the operation is run on the labels themselves."""
    settings = {"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format"}

    def of(name: str) -> Callable[[Any], Any]:
        # what says where to is no channel
        says_where = name in ("index", "indices", "mask")

        def labels(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.cpu() if says_where else call.labels_of(leaf)

        return labels

    given = {k: v for k, v in call.arguments.items() if k not in settings and v is not None}
    if "value" in given and not isinstance(given["value"], Tensor):
        given["value"] = 0  # what is padded with is no channel's
    results = call.operation(**{k: tree_map(of(k), v) for k, v in given.items()})
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]


def _copied(call: Call) -> list[Tensor]:
    return [call.labels_of(call.arguments["src"])]


def _over_space(n_dims: int) -> Rule:
    """Every channel for itself, over its last dimensions."""

    def rule(call: Call) -> list[Tensor]:
        labels = call.first
        one = call.coupling.one_along(labels, range(labels.ndim - n_dims, labels.ndim))
        return [one[(..., *[None] * n_dims)]] * len(call.results)

    return rule


def _reduced(call: Call) -> list[Tensor]:
    """Dimensions `dim` become one entry each, or go."""
    labels = call.first
    given = call.arguments.get("dim")
    dims = _dims(given, labels.ndim)
    one = call.coupling.grouped_along(labels, dims)
    if one is None:
        return call.mixture_of(labels)
    if call.results[0].ndim == labels.ndim:
        for dim in sorted(dims):
            one = one.unsqueeze(dim)
    return [one] * len(call.results)


def _along(call: Call) -> list[Tensor]:
    """Entries depend on all along `dim`, and keep their places."""
    labels = call.first
    if call.coupling.grouped_along(labels, _dims(call.arguments.get("dim"), labels.ndim)) is None:
        return call.mixture_of(labels)
    return [labels] * len(call.results)


def _dims(given: Any, n_dims: int) -> list[int]:
    if given is None or given == []:
        return list(range(n_dims))
    dims = [given] if isinstance(given, int) else list(given)
    return [dim % max(1, n_dims) for dim in dims]


def _halves_meet(call: Call) -> list[Tensor]:
    halves = call.first.chunk(2, call.arguments["dim"])
    return [call.coupling.together(halves, "")]


def _batch_norm(call: Call) -> list[Tensor]:
    """Channel for channel, with what the layer knows of it."""
    labels = call.first
    dims = [dim for dim in range(labels.ndim) if dim != 1]
    known = ("weight", "bias", "running_mean", "running_var")
    given = [t for name in known if isinstance(t := call.arguments.get(name), Tensor)]
    one = call.coupling.one_along(labels, dims)
    one = call.coupling.together([one, *map(call.labels_of, given)], "")
    # what else comes back is nobody's
    return [one.view(-1, *[1] * (labels.ndim - 2)), *[torch.zeros(())] * (len(call.results) - 1)]


def _layer_norm(call: Call) -> list[Tensor]:
    labels = call.first
    n_dims = len(call.arguments["normalized_shape"])
    if call.coupling.same_along(labels, range(labels.ndim - n_dims, labels.ndim)) is None:
        call.coupling.exclude(labels, f"its channels are normalised together by {call.words}")
    given = [t for n in ("weight", "bias") if isinstance(t := call.arguments.get(n), Tensor)]
    one = call.coupling.together([labels, *map(call.labels_of, given)], "")
    return [one, *[torch.zeros(())] * (len(call.results) - 1)]


def _group_norm(call: Call) -> list[Tensor]:
    """Channels of a norm group go together; a single group is a statistic over all of them."""
    labels = call.first
    n_groups = call.arguments["group"]
    if n_groups == 1 and call.coupling.same_along(labels, range(1, labels.ndim)) is None:
        call.coupling.exclude(labels, f"its channels are normalised together by {call.words}")
    else:
        of_group = labels.reshape(len(labels), n_groups, -1)
        call.coupling.one_along(of_group, (0, 2))
    one = call.coupling.one_along(labels, [dim for dim in range(labels.ndim) if dim != 1])
    given = [t for n in ("weight", "bias") if isinstance(t := call.arguments.get(n), Tensor)]
    one = call.coupling.together([one, *map(call.labels_of, given)], "")
    return [one.view(-1, *[1] * (labels.ndim - 2)), *[torch.zeros(())] * (len(call.results) - 1)]


def _product(call: Call) -> list[Tensor]:
    """A matrix product: what is summed over must be of one channel, for the rows or the columns."""
    left, right = (call.labels_of(t) for t in call.tensors()[-2:])
    for operand, other, summed in ((left, right, -1), (right, left, -2)):
        if not other.any():
            one = call.coupling.same_along(operand, [summed])
            return call.mixture_of(operand) if one is None else [one.unsqueeze(summed)]
    return call.mixed()


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "cat",
            "clone",
            "constant_pad_nd",
            "expand_copy",
            "flip",
            "gather",
            "im2col",
            "index",
            "index_select",
            "masked_select",
            "native_channel_shuffle",
            "permute_copy",
            "pixel_shuffle",
            "pixel_unshuffle",
            "reflection_pad1d",
            "reflection_pad2d",
            "reflection_pad3d",
            "repeat",
            "replication_pad1d",
            "replication_pad2d",
            "replication_pad3d",
            "roll",
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
        _moved,
    ),
    **dict.fromkeys(
        (
            "_to_copy",
            "_conj_physical",
            "alpha_dropout",
            "bernoulli",
            "contiguous",
            "dropout",
            "feature_dropout",
            "fill",
            "hardswish",
            "native_dropout",
            "normal",
            "rrelu_with_noise",
            "zero",
        ),
        _same,
    ),
    "copy": _copied,
    "_prelu_kernel": _entry_by_entry,
    "lift_fresh": _same,
    "glu": _halves_meet,
    **{
        f"{name}{n}d": _over_space(n)
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
    **{f"max_pool{n}d_with_indices": _over_space(n) for n in (1, 2, 3)},
    "_upsample_bilinear2d_aa": _over_space(2),
    "_upsample_bicubic2d_aa": _over_space(2),
    "grid_sampler_2d": _over_space(2),
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
        _reduced,
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
        _along,
    ),
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "bmm": _product,
    "mm": _product,
    "addmm": _product,
    "baddbmm": _product,
}
