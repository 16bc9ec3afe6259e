"""Images of a data set object: torchvision's, or the user's own."""

import os
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np

from shapray.config import Images
from shapray.errors import JobError
from shapray.inputs.listing import Listing
from shapray.inputs.user_code import call, call_in_words, user_code


class DatasetReader:
    """Reads items of a sequence that a factory builds, once per process.

    Args:
        key: where the factory was named, for messages.
    """

    def __init__(self, factory: str, kwargs: dict[str, Any], key: str):
        self.factory = factory
        self.kwargs = kwargs
        self.key = key
        self.built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "built": None}

    def dataset(self) -> Any:
        """Raises JobError if it cannot be built, or is no sequence."""
        if self.built is None:
            built = call(self.factory, self.kwargs, self.key)
            if not (hasattr(built, "__len__") and hasattr(built, "__getitem__")):
                raise JobError(
                    f"{self.key}: {call_in_words(self.factory, self.kwargs)} gave a "
                    f"{type(built).__name__}; a sequence of images, or of (image, label), is "
                    "expected"
                )
            self.built = built
        return self.built

    def item(self, row: int) -> Any:
        """Raises JobError if the user's data set fails."""
        dataset = self.dataset()
        with user_code(f"{self.key}: item {row} of {self.made()} cannot be read"):
            return dataset[row]

    def target(self, row: int) -> Any:
        """An item's label, None if it is an image only; raises JobError as `item` does."""
        item = self.item(row)
        return item[1] if isinstance(item, (tuple, list)) else None

    def made(self) -> str:
        """The data set, in words."""
        return f"the {type(self.dataset()).__name__} that {self.factory} made"

    def read(self, rows: Sequence[int], ids: Sequence[str]) -> list[Any]:
        items = [self.item(row) for row in rows]
        return [item[0] if isinstance(item, (tuple, list)) else item for item in items]

    def place(self, row: int, image_id: str) -> str:
        return f"{self.factory}, item {row}"


def open_dataset(images: Images, key: str) -> Listing:
    kwargs = dict(images.kwargs)
    factory = images.factory or ""
    if images.source == "torchvision":
        factory = factory if ":" in factory else f"torchvision.datasets:{factory}"
        if isinstance(kwargs.get("root"), str):
            kwargs["root"] = os.path.abspath(os.path.expanduser(kwargs["root"]))
    reader = DatasetReader(factory, kwargs, f"{key}.factory")
    dataset = reader.dataset()
    with user_code(f"{key}.factory: the length of {reader.made()} cannot be read"):
        n_images = len(dataset)
    ids = [str(row) for row in range(n_images)]
    if images.label_column is None or n_images == 0:
        return Listing(reader, range(n_images), ids, None)
    targets = _told(reader, n_images, images.source == "torchvision")
    if targets is None:
        targets = [reader.target(row) for row in range(n_images)]
    if all(target is None for target in targets):
        return Listing(reader, range(n_images), ids, None)
    return Listing(reader, range(n_images), ids, [_label(target) for target in targets])


def _told(reader: DatasetReader, n_images: int, trusted: bool) -> Sequence[Any] | None:
    """A data set's `targets`, which spare opening every item for its label; None if it has none.

    Args:
        trusted: they are taken at their word; else some items have to say the same.
    """
    with user_code(f"{reader.key}: the targets of {reader.made()} cannot be read"):
        targets: Any = getattr(reader.dataset(), "targets", None)
        if targets is None or not hasattr(targets, "__len__") or len(targets) != n_images:
            return None
        for row in () if trusted else (0, n_images // 2, n_images - 1):
            told = _label(targets[row]) if isinstance(targets, Sequence | np.ndarray) else None
            if not isinstance(told, int) or told != _label(reader.target(row)):
                return None
    return list(targets)


def _label(target: Any) -> Any:
    """A whole number of any library as an int; anything else as it is, for the message."""
    try:
        return index(target)
    except TypeError:
        return target
