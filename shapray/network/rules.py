"""Ways in which an operation's results get their labels from its arguments; see `operations`."""

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


def entry_by_entry(call: Call) -> list[Tensor]:
    labelled = [labels for t in call.tensors() if (labels := call.labels_of(t)).any()]
    spread = f"its channel is spread over others by {call.words}"
    return [call.coupling.together(labelled, spread)] * len(call.results)


def same(call: Call) -> list[Tensor]:
    """Results have the shape of the first tensor, entry for entry."""
    return [call.first] * len(call.results)


def moved(call: Call) -> list[Tensor]:
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


def copied(call: Call) -> list[Tensor]:
    return [call.labels_of(call.arguments["src"])]


def over_space(n_dims: int) -> Rule:
    """Every channel for itself, over its last dimensions."""

    def rule(call: Call) -> list[Tensor]:
        labels = call.first
        one = call.coupling.one_along(labels, range(labels.ndim - n_dims, labels.ndim))
        return [one[(..., *[None] * n_dims)]] * len(call.results)

    return rule


def reduced(call: Call) -> list[Tensor]:
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


def along(call: Call) -> list[Tensor]:
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


def halves_meet(call: Call) -> list[Tensor]:
    halves = call.first.chunk(2, call.arguments["dim"])
    return [call.coupling.together(halves, "")]


def batch_norm(call: Call) -> list[Tensor]:
    """Channel for channel, with what the layer knows of it."""
    labels = call.first
    dims = [dim for dim in range(labels.ndim) if dim != 1]
    known = ("weight", "bias", "running_mean", "running_var")
    given = [t for name in known if isinstance(t := call.arguments.get(name), Tensor)]
    one = call.coupling.one_along(labels, dims)
    one = call.coupling.together([one, *map(call.labels_of, given)], "")
    # what else comes back is nobody's
    return [one.view(-1, *[1] * (labels.ndim - 2)), *[torch.zeros(())] * (len(call.results) - 1)]


def layer_norm(call: Call) -> list[Tensor]:
    labels = call.first
    n_dims = len(call.arguments["normalized_shape"])
    if call.coupling.same_along(labels, range(labels.ndim - n_dims, labels.ndim)) is None:
        call.coupling.exclude(labels, f"its channels are normalised together by {call.words}")
    given = [t for n in ("weight", "bias") if isinstance(t := call.arguments.get(n), Tensor)]
    one = call.coupling.together([labels, *map(call.labels_of, given)], "")
    return [one, *[torch.zeros(())] * (len(call.results) - 1)]


def group_norm(call: Call) -> list[Tensor]:
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


def product(call: Call) -> list[Tensor]:
    """A matrix product: what is summed over must be of one channel, for the rows or the columns."""
    left, right = (call.labels_of(t) for t in call.tensors()[-2:])
    for operand, other, summed in ((left, right, -1), (right, left, -2)):
        if not other.any():
            one = call.coupling.same_along(operand, [summed])
            return call.mixture_of(operand) if one is None else [one.unsqueeze(summed)]
    return call.mixed()
