"""Calls in a traced forward that reduce dimensions, in the one way in which `Reduced` says them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from shapray.network.reduced import KINDS

_NAMES = {"norm": ("input", "p", "dim", "keepdim")}
_NAMES |= {"linalg_vector_norm": ("x", "ord", "dim", "keepdim")}
_NAMES |= dict.fromkeys(("var", "std"), ("input", "dim", "unbiased", "keepdim"))
_SAME = {"x": "input", "ord": "p", "axis": "dim"}


@dataclass(frozen=True)
class Reduction:
    """What a node does.

    Attributes:
        kind: of `KINDS`.
        source: what it reads.
        dims: as they are given, negative ones among them.
    """

    kind: str
    source: fx.Node
    dims: tuple[int, ...]
    keepdim: bool
    correction: float


def reduction(node: fx.Node) -> Reduction | None:
    """What a node reduces; None if it does something else, or reduces all dimensions."""
    name = str(getattr(node.target, "__name__", node.target))
    given: dict[str, Any] = dict(zip(_NAMES.get(name, ("input", "dim", "keepdim")), node.args))
    given |= node.kwargs
    given = {_SAME.get(key, key): value for key, value in given.items() if value is not None}
    kind = "norm" if name == "linalg_vector_norm" else name
    source, dim = given.pop("input", None), given.pop("dim", None)
    dims = (dim,) if isinstance(dim, int) else dim
    if kind not in KINDS or not isinstance(source, fx.Node) or not isinstance(dims, list | tuple):
        return None
    if any(type(d) is not int for d in dims):  # a boolean is what says `unbiased`
        return None
    keepdim, correction = given.pop("keepdim", False), 0.0
    if kind in ("var", "std"):
        correction = given.pop("correction", float(given.pop("unbiased", True)))
    if kind == "norm" and given.pop("p", 2) not in (2, "fro"):
        return None
    return None if given else Reduction(kind, source, tuple(dims), bool(keepdim), correction)


class _Extremes(NamedTuple):
    values: Any
    indices: Any


def _extremes(kind: str) -> Callable[..., Any]:
    def both(input: Any, *args: Any, **kwargs: Any) -> Any:
        by_name = dict(zip(("dim", "keepdim"), args)) | kwargs
        if type(by_name.get("dim")) is not int:  # the largest of all, or of two tensors
            return NotImplemented
        values = getattr(torch, f"a{kind}")(input, **by_name)
        return _Extremes(values, getattr(torch, f"arg{kind}")(input, **by_name))

    return both


def _spread_and_mean(kind: str) -> Callable[..., Any]:
    def both(
        input: Any,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> tuple[Any, Any]:
        if isinstance(dim, bool):
            return NotImplemented
        correction = int(unbiased) if correction is None else correction
        spread = getattr(torch, kind)(input, dim, correction=correction, keepdim=keepdim)
        return spread, torch.mean(input, dim, keepdim=keepdim)

    return both


def _normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    return input / torch.linalg.vector_norm(input, p, dim, keepdim=True).clamp_min(eps)


COMPOSED: dict[Any, Callable[..., Any]] = {
    F.normalize: _normalize,
    torch.max: _extremes("max"),
    torch.min: _extremes("min"),
    "max": _extremes("max"),
    "min": _extremes("min"),
    torch.var_mean: _spread_and_mean("var"),
    torch.std_mean: _spread_and_mean("std"),
}
"""Functions, and names of methods, that reduce and do more -> the same in several calls;
NotImplemented for arguments with which they do something else."""
