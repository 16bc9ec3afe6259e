"""A network in float64, where rounding explains nothing."""

import copy

from torch import Tensor, nn


def in_float64(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor] | None:
    """A copy in float64 and its images; None if the network insists on float32 somewhere."""
    try:
        exact = copy.deepcopy(model).double()
    except Exception:  # parameters that cannot be copied, a type without a larger one
        return None
    return (exact, images.double()) if runs(exact, images[:1].double()) else None


def runs(model: nn.Module, images: Tensor) -> bool:
    """Whether a network takes what it was perhaps not made for, and gives back its type."""
    try:
        return bool(model(images.clone()).dtype == images.dtype)
    except Exception:  # a constant in float32, an assertion about the pixels: anything
        return False
