"""What a caller gave, checked: what the rooms below say of a job's keys, said of arguments."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from shapray.config import Cluster, Prune, Score, explain
from shapray.constants.place import copied
from shapray.constants.wrappers import unwrapped
from shapray.inputs.model import ReadModel, made_plain
from shapray.shapley.values import WITHOUT_LABELS
from shapray.worker.in_memory import ImagesInMemory

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")
_SECTIONS: dict[str, type[BaseModel]] = {"score": Score, "cluster": Cluster, "prune": Prune}
_KEYS = re.compile(  # a section in front of one of its keys; a module may be called as it, too
    "|".join(rf"\b{name}\.(?=(?:{'|'.join(of.model_fields)})\b)" for name, of in _SECTIONS.items())
)


@contextmanager
def named_as_arguments() -> Iterator[None]:
    """What is said of a job's key is said of an argument: its name is the key's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(without_sections(str(error))) from error


def section_of(section: type[S], keys: Mapping[str, Any]) -> S:
    """Raises ValueError for an argument that is no key of the section, or has no value of it."""
    try:
        return section.model_validate(keys)
    except ValidationError as error:
        raise ValueError(explain(error, section).strip()) from error


def about(argument: str, check: Callable[[], T]) -> T:
    """What `check` returns; a ValueError that it raises gets the argument's name in front."""
    try:
        return check()
    except ValueError as error:
        raise ValueError(f"{argument}: {without_sections(str(error))}") from error


def without_sections(text: str) -> str:
    """A message about a job's keys as one about arguments."""
    return _KEYS.sub("", text)


def check_known(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ValueError for a setting that is none of the names."""
    unknown = settings.keys() - set(names)
    if unknown:
        raise ValueError(f"{min(unknown)}: no such argument; there are {', '.join(names)}")


def sections(
    groups: str | Sequence[str], workers: int | str | None, settings: Mapping[str, Any]
) -> tuple[Score, Cluster]:
    """The job file's sections `score` and `cluster`, from keys of both.

    Raises:
        ValueError: a key is in neither, or its value is wrong.
    """
    check_known(settings, [*Score.model_fields, *Cluster.model_fields])
    of_cluster = Cluster.model_fields.keys() & settings.keys()
    given = {} if workers is None else {"workers": workers}
    cluster = section_of(Cluster, {key: settings[key] for key in of_cluster} | given)
    if not isinstance(groups, str | Sequence) or not groups:
        raise ValueError(f"groups: a glob pattern or several are needed, found {groups!r}")
    patterns = [groups] if isinstance(groups, str) else list(groups)
    rest = {key: value for key, value in settings.items() if key not in of_cluster}
    return section_of(Score, rest | {"groups": patterns}), cluster


def in_memory(
    images: Tensor, labels: Any, ids: Sequence[str] | None, asked: Score
) -> ImagesInMemory:
    """Images to score, with labels if the value function needs them.

    Raises:
        ValueError: names the argument that is wrong.
    """
    pixels = pixels_of(images)
    targets = labels_of(labels, len(pixels))
    if targets is None and asked.value not in WITHOUT_LABELS:
        raise ValueError(
            f"labels: None, and the value {asked.value} needs them; "
            f"{' or '.join(sorted(WITHOUT_LABELS))} needs none"
        )
    named = tuple(str(name) for name in (range(len(pixels)) if ids is None else ids))
    if len(named) != len(pixels) or len(set(named)) != len(named):
        raise ValueError(
            f"ids: {len(named)}, {len(set(named))} of them different, for {len(pixels)} images"
        )
    return ImagesInMemory(pixels, targets, named)


def pixels_of(images: Any) -> Tensor:
    """(n, channels, height, width) float32 on the CPU."""
    pixels = images
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiu":
        pixels = torch.from_numpy(np.ascontiguousarray(images))
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not len(pixels):
        raise ValueError(
            f"images: a tensor (n, channels, height, width) is needed, found {kind_of(images)}"
        )
    if not pixels.is_floating_point():
        raise ValueError(
            f"images: their type is {pixels.dtype}; give floats as the network takes them, scaled "
            "and normalised"
        )
    wrong = (~pixels.flatten(1).isfinite().all(1)).nonzero()
    if len(wrong):
        raise ValueError(f"images: number {int(wrong[0])} holds values that are not finite")
    return pixels.detach().to("cpu", torch.float32, copy=True)


def labels_of(labels: Any, n_images: int) -> Tensor | None:
    """(n_images,) int64 on the CPU, or None."""
    if labels is None:
        return None
    try:
        found = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (ValueError, TypeError) as error:
        raise ValueError("labels: not one list of integers from 0") from error
    if found.dtype.kind not in "iu":
        raise ValueError(f"labels: their type is {found.dtype}; integers from 0 are needed")
    if found.shape != (n_images,):
        raise ValueError(f"labels: shape {found.shape} for {n_images} images")
    if found.min() < 0:
        raise ValueError(f"labels: {found.min()} is among them; labels are integers from 0")
    return torch.from_numpy(found.astype(np.int64))


def kind_of(value: Any) -> str:
    """A shape, or what else it is: for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def scorable(model: Any, images: Tensor) -> ReadModel:
    """A copy in eval mode, float32, on the CPU, constants in plain layers, logits out.

    Args:
        images: (n, channels, height, width) float32 on the CPU, of which one is passed through.
    Raises:
        ValueError: it is no network, or what it returns cannot be read.
    """
    network = network_of(model).to("cpu", torch.float32).eval()
    return ReadModel(network, tuple(about("model", lambda: made_plain(network, images[:1], None))))


def network_of(model: Any) -> nn.Module:
    """A copy, without wrappers; raises ValueError for what is no network."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: a torch.nn.Module is needed, found {kind_of(model)}")
    return unwrapped(copied(model))
