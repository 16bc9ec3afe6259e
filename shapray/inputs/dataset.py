"""Images of a data set object: torchvision's, or the user's own."""

import os
from collections.abc import Sequence
from operator import index
from typing import Any

from shapray.config import Images
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.listing import Listing
from shapray.inputs.model import import_callable


class DatasetReader:
    """Reads items of a sequence that a factory builds, once per process."""

    def __init__(self, factory: str, kwargs: dict[str, Any], key: str):
        self.factory = factory
        self.kwargs = kwargs
        self.key = key
        self.built: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "built": None}

    def dataset(self) -> Any:
        if self.built is None:
            factory = import_callable(self.factory, f"{self.key}.factory")
            call = f"{self.factory}(**{without_credentials(self.kwargs)})"
            try:
                self.built = factory(**self.kwargs)
            except Exception as error:  # the user's code: whatever it says is the message
                raise JobError(
                    f"{self.key}.factory: {call} failed: {without_credentials(f'{error}')}"
                ) from error
            if not (hasattr(self.built, "__len__") and hasattr(self.built, "__getitem__")):
                raise JobError(
                    f"{self.key}.factory: {call} gave a {type(self.built).__name__}; a sequence "
                    "of images, or of (image, label), is expected"
                )
        return self.built

    def item(self, row: int) -> Any:
        """Raises JobError if the user's data set fails."""
        dataset = self.dataset()
        try:
            return dataset[row]
        except Exception as error:  # the user's code: whatever it says is the message
            cause = without_credentials(f"{type(error).__name__}: {error}")
            raise JobError(
                f"{self.key}.factory: item {row} of what {self.factory} made (a "
                f"{type(dataset).__name__} of {len(dataset)}) cannot be read: {cause}"
            ) from error

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
    reader = DatasetReader(factory, kwargs, key)
    dataset = reader.dataset()
    n_images = len(dataset)
    ids = [str(row) for row in range(n_images)]
    if images.label_column is None or n_images == 0:
        return Listing(reader, range(n_images), ids, None)
    targets = getattr(dataset, "targets", None) if images.source == "torchvision" else None
    if targets is None or len(targets) != n_images:
        items = (reader.item(row) for row in range(n_images))
        targets = [item[1] if isinstance(item, (tuple, list)) else None for item in items]
    if all(target is None for target in targets):
        return Listing(reader, range(n_images), ids, None)
    labels = [index(t) if hasattr(t, "__index__") else t for t in targets]
    return Listing(reader, range(n_images), ids, labels)
