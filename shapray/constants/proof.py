"""Whether one module does what another does."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TOLERANCE = 1e-6  # of the largest output


def same_outputs(module: nn.Module, other: nn.Module, images: Sequence[Tensor]) -> bool:
    """Run both, in float64 on the CPU.

    Args:
        images: (n, channels, height, width) each.
    Returns:
        False, too, for a module that does not run alone.
    """
    for batch in images:
        right, found = (run_alone(each, batch) for each in (module, other))
        if right is None or found is None or found.shape != right.shape:
            return False
        apart = (found - right).abs().max()
        if not apart <= TOLERANCE * right.abs().max():  # NaN is no agreement
            return False
    return True


def run_alone(module: nn.Module, images: Tensor) -> Tensor | None:
    """What a copy of the module makes of images in float64; None if that is no tensor."""
    try:
        with torch.no_grad():
            outputs = copy.deepcopy(module).to("cpu", torch.float64)(images.double())
    except Exception:  # a type or a device that it insists on, arguments that it lacks: anything
        return None
    return outputs if isinstance(outputs, Tensor) else None
