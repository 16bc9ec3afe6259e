"""Sets of images: which ones are taken, how they become tensors, and their digests."""

import copy
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shapray.config import Images, Transform
from shapray.errors import JobError
from shapray.inputs.decode import decode, was_read_otherwise
from shapray.inputs.digest import content_digest, digest
from shapray.inputs.listing import Reader
from shapray.inputs.sources import open_source
from shapray.storage.retry import patiently


class ImageSet:
    """Images of one job section, read when asked for; small to pickle, usable in any process."""

    def __init__(
        self,
        reader: Reader,
        rows: list[int],
        ids: list[str],
        labels: Tensor | None,
        transform: Transform,
        key: str,
        balanced: bool,
    ) -> None:
        self.ids = ids
        self.labels = labels  # (n,) int64, or None
        self.balanced = (
            balanced  # of more images as many of every label were taken as there could be
        )
        self.key = key
        self._reader = reader
        self._rows = rows
        self._transform = transform
        self._digests: list[str] = []  # of the first ones, as many as were asked for
        self._first_id = ids[0]
        self._size: tuple[int, ...] | None = None
        self._size = tuple(self.load(0, 1).shape[2:])  # of the first image; all must have it

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, n: int) -> "ImageSet":
        """The first images as a set of their own."""
        first = self.some(range(min(n, len(self))))
        first._digests = self._digests[:n]
        return first

    def some(self, places: Sequence[int]) -> "ImageSet":
        """Some of the images, in an order of their own, of the same size as all."""
        some = copy.copy(self)
        some._rows = [self._rows[place] for place in places]
        some.ids = [self.ids[place] for place in places]
        some.labels = None if self.labels is None else self.labels[list(places)]
        some._digests = []
        return some

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_digests": []}

    def load(self, first: int, last: int) -> Tensor:
        """Images [first, last), transformed: (last - first, channels, height, width) float32.

        Raises:
            JobError: an image cannot be decoded, has other channels or another size than the first
                image of the set; names the image and its file.
        """
        assert 0 <= first < last <= len(self), (first, last, len(self))
        return torch.stack(
            [
                self._tensor(image, position)
                for position, image in enumerate(self._read(first, last), start=first)
            ]
        )

    def content_digests(self, n: int | None = None) -> list[str]:
        """Hex SHA-256 of every image's encoded bytes, or of its pixels where it has none.

        Args:
            n: so many images are read, the first ones; all unless told.
        """
        n = len(self) if n is None else n
        step = 256  # images in memory at once
        for first in range(len(self._digests), n, step):
            self._digests += map(content_digest, self._read(first, min(first + step, n)))
        return self._digests[:n]

    def digest(self, n: int | None = None) -> str:
        """Hex SHA-256 of everything that reaches the network: ids, labels, content, transform.

        Where the first image says that an earlier version read such images otherwise, the way they
        are decoded is part of it, so that a run begun then is another job.

        Args:
            n: the content of so many images is part of it, of the first ones; all unless told.
        """
        labels = None if self.labels is None else self.labels.tolist()
        transform = self._transform.model_dump(mode="json")
        parts: list[Any] = [self.ids, labels, self.content_digests(n), transform]
        (first,) = self._read(0, 1)
        if isinstance(first, bytes) and was_read_otherwise(first, self._transform.mode):
            parts.append("Pillow")
        return digest(parts)

    def _read(self, first: int, last: int) -> list[Any]:
        try:
            rows, ids = self._rows[first:last], self.ids[first:last]
            return patiently(lambda: self._reader.read(rows, ids))
        except FileNotFoundError as error:
            raise JobError(f"{self.key}: a file is no longer there: {error}") from error

    def _name(self, position: int) -> str:
        image_id = self.ids[position]
        return f"image '{image_id}' ({self._reader.place(self._rows[position], image_id)})"

    def _tensor(self, image: Any, position: int) -> Tensor:
        """One image -> (channels, height, width) float32, transformed."""
        transform = self._transform
        try:
            pixels = decode(image, transform.mode)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise JobError(
                f"{self.key}: {self._name(position)} does not decode: {reason}"
            ) from error
        if transform.resize is not None:
            size = transform.resize
            functional = _torchvision()
            pixels = functional.resize(
                pixels,
                [size] if isinstance(size, int) else list(size),
                functional.InterpolationMode.BILINEAR,
                antialias=True,
            )
        if transform.crop is not None:
            if min(pixels.shape[1:]) < transform.crop:
                raise JobError(
                    f"{self.key}: {self._name(position)} is {_by(pixels.shape[1:])} pixels before "
                    f"the transform's crop; a side of {transform.crop} does not fit in"
                )
            pixels = _torchvision().center_crop(pixels, [transform.crop, transform.crop])
        size_found = tuple(pixels.shape[1:])
        if self._size is not None and size_found != self._size:
            raise JobError(
                f"{self.key}: images of different sizes: '{self._first_id}' is {_by(self._size)}, "
                f"{self._name(position)} is {_by(size_found)} pixels; a transform with resize (and "
                "crop) brings them to one size"
            )
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if transform.mean is not None:
            scaled = scaled - torch.tensor(transform.mean).view(-1, 1, 1)
        if transform.std is not None:
            scaled = scaled / torch.tensor(transform.std).view(-1, 1, 1)
        return scaled


def _torchvision() -> Any:
    """Imported where it is used: it takes as long as torch itself, and most jobs do without it."""
    from torchvision.transforms import functional  # noqa: PLC0415

    return functional


def open_images(images: Images, transform: Transform, key: str) -> ImageSet:
    """Choose the images of a job section, without reading more than the first one's pixels.

    With `limit`, as many images of every class are taken as class sizes allow; which ones depends
    on nothing but the seed, the ids and the labels. They keep the order of the source. With the
    limit "auto" all are taken, in an order in which the first ones are those that a limit would
    take.

    Args:
        images: the section.
        transform: how images become tensors.
        key: name of the section, e.g. ``data.calibration``, for messages.
    Raises:
        JobError: missing file or column, no images, repeated ids, labels that are not integers
            >= 0, a first image that does not decode.
    """
    listing = open_source(images, key)
    n_images = len(listing.ids)
    if n_images == 0:
        raise JobError(f"{key}: no images there")
    if len(set(listing.ids)) < n_images:
        [(twice, times)] = Counter(listing.ids).most_common(1)
        raise JobError(f"{key}: ids must be unique; '{twice}' names {times} images")
    labels = _checked_labels(listing.labels, listing.ids, key)
    chosen: Sequence[int] = range(n_images)
    if images.limit == "auto":
        chosen = _balanced_order(listing.ids, labels, images.seed)
    elif images.limit is not None:
        chosen = _balanced_subset(listing.ids, labels, images.limit, images.seed)
    return ImageSet(
        listing.reader,
        [listing.rows[i] for i in chosen],
        [listing.ids[i] for i in chosen],
        None if labels is None else torch.tensor([labels[i] for i in chosen], dtype=torch.int64),
        transform,
        key,
        balanced=labels is not None and (images.limit == "auto" or len(chosen) < n_images),
    )


def check_labels(labels: Tensor | None, ids: Sequence[str], n_classes: int, key: str) -> None:
    """Every label names one of the network's `n_classes` outputs.

    Args:
        labels: (n,) int64, not negative; None is right, too.
        ids: of the images.
        key: where they come from, for the message.
    Raises:
        JobError: names the first image whose label does not.
    """
    if labels is None:
        return
    wrong = torch.nonzero(labels >= n_classes).flatten().tolist()
    if wrong:
        first = wrong[0]
        raise JobError(
            f"{key}: image '{ids[first]}' has label {int(labels[first])}; "
            f"the network has {n_classes} outputs, so labels are 0..{n_classes - 1} "
            f"({len(wrong)} of {len(ids)} images are outside)"
        )


def check_disjoint(calibration: ImageSet, evaluation: ImageSet) -> None:
    """No image content is in both sets, whatever the ids say.

    Raises:
        JobError: how many are, and the first few.
    """
    place = {content: i for i, content in enumerate(calibration.content_digests())}
    shared = [
        f"'{calibration.ids[place[content]]}' = '{evaluation.ids[i]}'"
        for i, content in enumerate(evaluation.content_digests())
        if content in place
    ]
    if shared:
        raise JobError(
            f"{calibration.key} and {evaluation.key} share {len(shared)} images "
            f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}); "
            "images used to score must not measure the result"
        )


def _checked_labels(labels: list[Any] | None, ids: list[str], key: str) -> list[int] | None:
    if labels is None:
        return None
    for image_id, label in zip(ids, labels):
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**63:
            raise JobError(
                f"{key}: image '{image_id}' has label {label!r}; labels are integers from 0 "
                "(label_column: null for images without)"
            )
    return labels


def _balanced_subset(ids: list[str], labels: list[int] | None, limit: int, seed: int) -> list[int]:
    """Positions of min(limit, n) images, classes as equal as their sizes allow, in order."""
    left = min(limit, len(ids))
    chosen: list[int] = []
    ranked = _ranked_in_classes(ids, labels, seed)
    smallest_first = sorted(ranked.items(), key=lambda item: (len(item[1]), item[0]))
    for n_done, (_, positions) in enumerate(smallest_first):
        take = min(len(positions), left // (len(ranked) - n_done))
        chosen += positions[:take]
        left -= take
    return sorted(chosen)


def _balanced_order(ids: list[str], labels: list[int] | None, seed: int) -> list[int]:
    """Positions of all images, one of each class after the other while there are any. Which class
    comes first in a turn is chance: the first ones of many classes are to be like all."""
    ranked = _ranked_in_classes(ids, labels, seed)
    rank = _ranks(ids, seed)
    turns = itertools.zip_longest(*ranked.values())
    return [
        position
        for turn in turns
        for position in sorted((p for p in turn if p is not None), key=rank.__getitem__)
    ]


def _ranked_in_classes(ids: list[str], labels: list[int] | None, seed: int) -> dict[int, list[int]]:
    """Class -> positions of its images, by a hash of seed and id: a choice of the first ones does
    not change with the order of the source or with what other classes hold."""
    members: dict[int, list[int]] = {}
    for position in range(len(ids)):
        members.setdefault(0 if labels is None else labels[position], []).append(position)
    rank = _ranks(ids, seed)
    return {label: sorted(of, key=rank.__getitem__) for label, of in members.items()}


def _ranks(ids: list[str], seed: int) -> list[bytes]:
    return [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in ids]


def _by(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size)
