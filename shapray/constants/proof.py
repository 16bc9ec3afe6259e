"""Whether one module does what another does, by running both in float64."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
TOLERANCE = 1e-6  # of the largest output


def in_float64(module: Module) -> Module:
    """A copy on the CPU."""
    return copy.deepcopy(module).to("cpu", torch.float64)


def outputs_of(exact: nn.Module, images: Tensor) -> Tensor | None:
    """What a module in float64 makes of images; None if it does not run alone."""
    try:
        with torch.no_grad():
            outputs = exact(images.double())
    except Exception:  # a type or a device that it insists on, arguments that it lacks: anything
        return None
    return outputs if isinstance(outputs, Tensor) else None


def gives(module: nn.Module, images: Sequence[Tensor], right: Sequence[Tensor | None]) -> bool:
    """Whether a module makes of images what another did in float64.

    Args:
        images: (n, channels, height, width) each.
        right: what the other made of them, None where it did not run.
    """
    exact = in_float64(module)
    return all(_agree(outputs_of(exact, batch), of) for batch, of in zip(images, right))


def _agree(found: Tensor | None, right: Tensor | None) -> bool:
    if found is None or right is None or found.shape != right.shape:
        return False
    return bool((found - right).abs().max() <= TOLERANCE * right.abs().max())  # False for NaN
