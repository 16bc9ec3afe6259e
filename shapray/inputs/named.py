"""A library's network by its name alone, without a job."""

import torch
from torch import nn

from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.libraries import Shape, library
from shapray.inputs.model import build_model
from shapray.inputs.user_code import import_callable, user_code


def named_model(spec: str) -> tuple[nn.Module, Shape]:
    """A network as a job would read it, with random weights.

    Args:
        spec: ``torchvision:NAME`` or ``timm:NAME``.
    Returns:
        the network; (channels, height, width) of the images that it was made for.
    Raises:
        JobError: there is no such network, or its library is not installed.
    """
    place, _, name = spec.partition(":")
    import_callable(spec, "model")
    known = library(place)
    if known is None:
        raise JobError(
            f"model: '{spec}' is no network's name; right is torchvision:NAME, timm:NAME"
        )
    with user_code(f"model: '{spec}' does not say for which images it is"):
        shape = known.image_shape(name)
    return build_model(Model(factory=spec), example=torch.zeros(1, *shape)), shape
