"""Networks of torchvision and timm by their names: ``torchvision:resnet50``, ``timm:resnet18d``."""

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shapray.errors import JobError

Shape = tuple[int, int, int]
_SIDE = 224  # of images, where a library does not say for which a network was made


@dataclass(frozen=True)
class Library:
    """Where a library keeps its networks.

    Attributes:
        make: the network of a name, by keyword arguments; with random weights unless these say
            otherwise.
        names: of all its networks.
        image_shape: (channels, height, width) of the images that a network was made for.
    """

    make: Callable[..., Any]
    names: Callable[[], Iterable[str]]
    image_shape: Callable[[str], Shape]


def library(name: str) -> Library | None:
    """The library of that name, imported; None if it is none of those known here."""
    opened = _LIBRARIES.get(name)
    return opened() if opened else None


def maker(of: Library, name: str, spec: str, key: str) -> Callable[..., Any]:
    """What makes a library's network.

    Args:
        spec, key: how and where it was named, for messages.
    Raises:
        JobError: there is no network of that name.
    """
    names = list(of.names())
    if name.partition(".")[0] not in names:  # timm: what comes after a dot names its weights
        near = difflib.get_close_matches(name, names)
        hint = f"; close to it: {', '.join(near)}" if near else ""
        raise JobError(f"{key}: there is no network '{spec}'{hint}")
    return functools.partial(of.make, name)


def _torchvision() -> Library:
    models = importlib.import_module("torchvision.models")

    def image_shape(name: str) -> Shape:
        weights = next(iter(models.get_model_weights(name)), None)
        crop = getattr(weights.transforms(), "crop_size", None) if weights else None
        side = crop[0] if isinstance(crop, list | tuple) else crop
        return (3, side or _SIDE, side or _SIDE)

    return Library(models.get_model, models.list_models, image_shape)


def _timm() -> Library:
    timm = importlib.import_module("timm")

    def image_shape(name: str) -> Shape:
        config = timm.get_pretrained_cfg(name)
        return tuple(config.input_size) if config else (3, _SIDE, _SIDE)

    return Library(timm.create_model, timm.list_models, image_shape)


_LIBRARIES = {"torchvision": _torchvision, "timm": _timm}
